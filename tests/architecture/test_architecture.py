"""The layers, the circles, the budgets, and what an import loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskflow
from tests import conftest
from tests.architecture.imports import ROOT, Imported, all_imported_names, imports_of, modules, nodes_of

MODULES = modules()
KNOWN = frozenset(MODULES)
LAYERS = {
    "model": 1,
    "broker": 2,
    "app": 3,
    "worker": 4,
    "events": 5,
    "testing": 5,
    "telemetry": 5,
    "cli": 6,
    "dashboard": 5,
    "integrations": 5,
    "litestar": 5,
    "django": 7,
}
TOP = 5

# Lines of Python, Lua and SQL at most. Lower one when its room has shrunk: the package is to come below 36,500, the tests below 55,000.
BUDGETS = {
    "taskflow/model": 7_161,
    "taskflow/broker/engine": 5_914,
    "taskflow/broker/memory": 732,
    "taskflow/broker/sqlite": 4_268,
    "taskflow/broker/redis": 5_385,
    "taskflow/broker/postgres": 6_014,
    "taskflow/broker": 24_520,
    "taskflow/app": 8_028,
    "taskflow/worker": 7_136,
    "taskflow/cli": 4_762,
    "taskflow/testing": 1_043,
    "taskflow/dashboard": 2_075,
    "taskflow/django": 621,
    "taskflow/telemetry": 430,
    "taskflow": 56_040,
    "tests": 77_281,
}


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.get(parts[1]) if len(parts) > 1 else None


def test_every_module_belongs_to_a_layer() -> None:
    """A new folder of the package must be given its layer here, and in the design."""
    homeless = [module for module in MODULES if layer_of(module) is None and module not in ("taskflow", "taskflow.__main__")]
    assert homeless == []


def test_an_import_never_runs_up() -> None:
    """Nor sideways between surfaces; what is imported for types alone may."""
    for module, file in MODULES.items():
        for imported in imports_of(file, KNOWN):
            layer, target = layer_of(module), layer_of(imported.module)
            if imported.is_for_types or layer is None or target is None:
                continue
            assert target <= layer, f"{module} (layer {layer}) imports {imported.module} (layer {target})"
            if layer == target == TOP:
                assert module.split(".")[1] == imported.module.split(".")[1], f"{module} imports another surface, {imported.module}"


def test_there_is_no_circle() -> None:
    """Not even one that is held together by late imports, or by imports for types alone."""
    graph = {module: {i.module for i in imports_of(file, KNOWN)} - {module} for module, file in MODULES.items()}
    graph["taskflow"] = set()  # it loads its names when they are used, never when it is imported
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert graph == {}


def test_a_circle_would_be_found() -> None:
    """The reader of imports sees what stands in functions and under TYPE_CHECKING, and tells them apart."""
    assert Imported("taskflow.app.job", is_for_types=True) in imports_of(MODULES["taskflow"], KNOWN)
    assert Imported("taskflow.broker.topics", is_for_types=False) in imports_of(MODULES["taskflow.app.handle"], KNOWN)


def test_only_the_url_module_imports_a_broker() -> None:
    for module, file in MODULES.items():
        for imported in imports_of(file, KNOWN):
            parts = imported.module.split(".")
            is_concrete = parts[:2] == ["taskflow", "broker"] and len(parts) > 2 and parts[2] in ("memory", "sqlite", "redis", "postgres")
            if is_concrete and not module.startswith(".".join(parts[:3])) and not module.startswith("taskflow.testing"):
                assert module == "taskflow.broker.url", f"{module} imports {imported.module}"


def test_the_model_does_nothing_by_itself() -> None:
    """Layer 1: no event loop, no socket, no store, no process."""
    for module, file in MODULES.items():
        if layer_of(module) == 1:
            assert all_imported_names(file).isdisjoint({"asyncio", "anyio", "socket", "sqlite3", "redis", "asyncpg", "subprocess"}), module


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, file in MODULES.items():
        for node in nodes_of(file):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{node.name}", node


@pytest.mark.parametrize("room", BUDGETS)
def test_a_room_keeps_its_budget(room: str) -> None:
    """How many files the lines are in does not matter. `tests/worker/test_files_entered.py` counts those that a job enters."""
    lines = sum(file.read_bytes().count(b"\n") for suffix in ("py", "lua", "sql") for file in (ROOT / room).rglob(f"*.{suffix}"))
    assert lines <= BUDGETS[room]


def test_the_dashboard_has_3_000_lines() -> None:
    """Scripts, templates and the stylesheet included, files of other projects left out."""
    files = (file for suffix in ("py", "html", "css", "js") for file in (ROOT / "taskflow/dashboard").rglob(f"*.{suffix}"))
    assert sum(file.read_bytes().count(b"\n") for file in files if file.parent.name != "vendor") <= 3_000


def test_functions_are_short() -> None:
    assert {name for name, node in functions() if (node.end_lineno or 0) - node.lineno + 1 > 60} == set()


def test_the_median_function_has_under_ten_lines() -> None:
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for _, node in functions())
    assert lengths[len(lengths) // 2] < 10


def test_functions_take_few_parameters() -> None:
    """More than nine want a frozen struct of options. `configure` is the public face of one."""
    many = {name for name, node in functions() if len(node.args.args) + len(node.args.kwonlyargs) > 9}
    assert many == {"taskflow.app.app:configure"}


def test_names_that_say_nothing_are_not_used() -> None:
    for module in MODULES:
        assert module.rpartition(".")[2] not in ("utils", "helpers", "common", "misc", "manager"), module


def test_dir_lists_the_public_names() -> None:
    """Completion offers these, and none of the package's insides."""
    assert dir(taskflow) == taskflow.__all__
    assert None not in [getattr(taskflow, name) for name in taskflow.__all__]


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(taskflow, "nonsense")  # noqa: B009  # no checker would let it pass otherwise


def loaded_by(statement: str, *options: str) -> set[str]:
    """The modules that are loaded once a fresh interpreter has run a statement, and were not before it."""
    program = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(ran.stdout.splitlines()[-1].split())


DRIVERS = {"sqlite3", "redis", "asyncpg", "psycopg", "rich", "starlette", "fastapi", "django", "uvloop"}


def test_importing_taskflow_loads_next_to_nothing() -> None:
    """No driver, no web framework, no rich, no event loop."""
    loaded = loaded_by("import taskflow")
    assert loaded.isdisjoint(DRIVERS | {"asyncio", "anyio", "msgspec", "msgpack"})
    assert {name for name in loaded if name.startswith("taskflow")} == {"taskflow"}


def test_nothing_is_loaded_before_the_first_line_of_the_command() -> None:
    """Until it runs, a Ctrl-C is Python's to handle, and each import has moments in which Python loses it."""
    loaded = loaded_by("import runpy; before = set(sys.modules)\nimport taskflow.__main__", "-S")
    assert loaded == {"__future__", "taskflow", "taskflow.__main__", "taskflow.cli", "taskflow.cli.main"}


def test_a_worker_imports_only_the_modules_it_needs() -> None:
    """Not what a mistake, a child process, a fleet, a zone or a settings file would need, nor what the driver would read about itself."""
    loaded = loaded_by(
        "sys.modules['opentelemetry'] = None\n"  # redis loads it where it is installed
        "import taskflow.cli.main, taskflow.cli.worker, taskflow.broker.redis\n"
        "from taskflow.broker.redis.server import RedisTarget\nRedisTarget().connection()"
    )
    assert {"taskflow.worker.worker", "anyio"} <= loaded
    assert loaded.isdisjoint({"ctypes", "difflib", "tomllib", "email.parser", "zoneinfo", "taskflow.worker.supervisor"})


def test_the_command_line_loads_nothing_that_unpacks_archives() -> None:
    """As argparse does by itself, to know how wide a terminal is, and importlib.resources."""
    loaded = loaded_by("import taskflow.cli.main\nfrom taskflow.cli.parser import a_parser\na_parser().parse_args(['worker', 'tasks'])")
    assert "argparse" in loaded
    assert loaded.isdisjoint({"shutil", "zipfile", "tempfile", "importlib.resources"})


def test_declaring_a_job_loads_no_driver_and_no_worker() -> None:
    loaded = loaded_by("from taskflow import job; job(name='a')(lambda: None)")
    assert loaded.isdisjoint(DRIVERS | {"anyio"})
    assert not {name for name in loaded if name.startswith(("taskflow.worker", "taskflow.cli", "taskflow.testing"))}


def test_help_loads_no_asyncio() -> None:
    loaded = loaded_by("from taskflow.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n")
    assert loaded.isdisjoint(DRIVERS | {"asyncio", "anyio", "msgspec"})


def test_the_supervisor_loads_no_event_loop_and_nothing_of_the_application() -> None:
    loaded = loaded_by("import taskflow.cli.main, taskflow.cli.parser, taskflow.cli.supervise")
    assert "taskflow.worker.processes" in loaded
    assert loaded.isdisjoint(DRIVERS | {"asyncio", "anyio", "msgspec", "msgpack", "ctypes"})
    assert not {name for name in loaded if name.startswith(("taskflow.app", "taskflow.broker"))}


def test_a_broker_loads_only_its_own_driver() -> None:
    loaded = loaded_by("from taskflow.broker.url import connect; connect('memory://')")
    assert loaded.isdisjoint(DRIVERS)


def test_no_code_waits_in_a_way_that_swallows_a_cancellation() -> None:
    """asyncio.wait_for does on Python 3.11, when what it waits for comes at the same time: who was cancelled goes on for ever."""
    assert [str(path) for path in sorted((ROOT / "taskflow").rglob("*.py")) if "asyncio.wait_for(" in path.read_text()] == []


# Where an exponent grows, each with its reason. Retries use `taskflow.model.pauses`, whose exponent is bounded.
GROWING_EXPONENTS = {
    "taskflow.model.pauses": "the one place",
    "taskflow.model.rules": "a job's own factor, whose overflow is caught",
    "taskflow.worker.options": "of a number below 1: a weight's share",
    "taskflow.worker.watchdog": "of 1 s, 10 s, 100 s, as in runs",
    "taskflow.worker.runs": "of 10 s, 100 s and so on, each told after so many seconds: 300 of them take longer than the universe",
}


def test_only_the_one_retry_computes_a_growing_pause() -> None:
    """A hand-written ``first * 2**times`` once overflowed after 1,024 tries, and the worker looked alive for ever."""
    found = {module for module, file in MODULES.items() if _has_growing_exponent(file)}
    assert found == set(GROWING_EXPONENTS)


def _has_growing_exponent(file: Path) -> bool:
    powers = (node for node in nodes_of(file) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow))
    return any(not isinstance(node.right, ast.Constant) for node in powers)


def test_nothing_draws_from_the_global_random_generator() -> None:
    """Jobs seed it: all ids, or the pauses of all workers, would be the same ones again."""
    found = [(module, name) for module, file in MODULES.items() for name in _global_draws(file)]
    assert found == []


def _global_draws(file: Path) -> set[str]:
    """Return the functions of the random module that a module uses, which all draw from its one generator."""
    nodes = nodes_of(file)
    used = {
        node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    }
    used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "random" for alias in node.names}
    return used - {"Random", "SystemRandom"}


def test_every_pause_between_tries_is_one_of_the_retrys() -> None:
    """No module names a first or a longest pause of its own but to make `Pauses` of it, or because nothing is tried again by it."""
    named = {module for module, file in MODULES.items() if "FIRST_PAUSE" in (text := file.read_text()) or "RETRY_PAUSE" in text}
    assert named == set()


def test_no_test_module_imports_another() -> None:
    """What several share is a module of its own, so that a test can move or go alone."""
    importing = re.compile(r"^ *(?:from|import) (tests[.\w]*\b)(?: import (\w+))?", re.MULTILINE)
    tests = {file for kind in ("test", "long", "nightly") for file in (ROOT / "tests").rglob(f"{kind}_*.py")}
    named = {
        (file.name, (ROOT / "/".join(name.split("."))).with_suffix(".py"))
        for file in tests
        for package, module in importing.findall(file.read_text())
        for name in (package, f"{package}.{module}")
    }
    assert [(name, imported) for name, imported in named if imported in tests and imported.name != name] == []


def test_skipped_tests_keep_their_reasons_on_the_way_from_a_worker_of_pytest() -> None:
    """`pytest -rs -n auto` shows them: it needs the place and the reason as a tuple, and no lone surrogate."""
    cleaning = conftest.pytest_report_to_serializable()
    next(cleaning)
    with pytest.raises(StopIteration) as end:
        cleaning.send({"longrepr": ("test_it.py", 7, "Skipped: no \udcff"), "sections": [["out", "\udcff"]]})
    assert end.value.value == {"longrepr": ("test_it.py", 7, "Skipped: no ?"), "sections": [["out", "?"]]}
