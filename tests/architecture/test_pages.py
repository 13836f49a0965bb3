"""The pages for contributors name files that exist, and draw the layers as the imports have them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT, imports_of, modules

STORES = ("sqlite", "redis", "postgres")
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")])

_PATH = re.compile(r"`((?:taskflow|tests|benchmarks|docs|\.github|\.ci)/[\w./-]+)`")
_FILE_NAME = re.compile(r"`((?:[\w-]+/)*(?:[\w-]+/|[\w-]+\.(?:py|sql|lua)))`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def test_every_file_that_a_page_names_exists() -> None:
    """With its folder, or by the end of its path."""
    files = [
        f"/{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for room in ("taskflow", "tests") for path in (ROOT / room).rglob("*")
    ]
    missing = []
    for page in PAGES:
        text = page.read_text()
        gone = [path for path in _PATH.findall(text) if "NNNN" not in path and not (ROOT / path).exists()]
        named = {name for name in _FILE_NAME.findall(text) if not (ROOT / name).exists()} - {"app/tasks.py"}  # the reader has this one
        gone += [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
        missing += [(str(page.relative_to(ROOT)), path) for path in gone]
    assert missing == [], "name their present place"


def test_decision_records_are_short_and_listed() -> None:
    """Each has at most 40 lines, so that it is read, and a number that no other one has."""
    records = sorted(ROOT.glob("docs/explanation/decisions/[0-9]*.md"))
    index = ROOT / "docs/explanation/decisions/README.md"
    assert [record.name for record in records if record.read_text().count("\n") > 40] == []
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    assert sorted(_LINK.findall(index.read_text())) == sorted([*(record.name for record in records), "../../../benchmarks/README.md"])


ARCHITECTURE = ROOT / "docs/explanation/architecture.md"


def test_the_drawing_of_the_layers_matches_the_imports() -> None:
    """Without the arrows that follow from others."""
    arrows = re.findall(r"^ *([\w, ]+) → ([\w, ]+)$", ARCHITECTURE.read_text(), re.MULTILINE)
    drawn = {(part, target) for parts, targets in arrows for part in parts.split(", ") for target in targets.split(", ")}
    assert drawn == _reduced(_imports_between_folders())


def _imports_between_folders() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    files = modules()
    for module, file in files.items():
        for imported in imports_of(file, frozenset(files)):
            if not imported.is_for_types:
                found.setdefault(_part(module), set()).add(_part(imported.module))
    return {part: targets - {part, ""} for part, targets in found.items() if part not in ("", "__main__")}


def _part(module: str) -> str:
    """Return the folder of a module: of the brokers, the store. `url`, which alone imports the stores, stands for itself."""
    parts = module.split(".")[1:] or [""]
    return parts[1] if parts[0] == "broker" and len(parts) > 1 and parts[1] in (*STORES, "memory", "url") else parts[0]


def _reduced(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the edges of a graph without circles that no other path replaces."""

    def reach(part: str) -> set[str]:
        targets = graph.get(part, set())
        return targets.union(*map(reach, targets))

    return {(part, target) for part, targets in graph.items() for target in targets if not any(target in reach(t) for t in targets)}


@pytest.mark.parametrize(("title", "store"), [("PostgreSQL", "postgres"), ("SQLite", "sqlite"), ("Redis", "redis")])
def test_the_table_of_a_store_names_all_of_its_files(title: str, store: str) -> None:
    rows = re.findall(r"^\| .*? \| (.*) \|$", _section(f"{title} under the engine"), re.MULTILINE)
    names = set(re.findall(r"`([\w.]+)`", "".join(rows)))
    files = {file.name for file in (ROOT / "taskflow/broker" / store).iterdir() if not file.name.startswith("__")}
    assert names - {"claim", "add", "succeed", "promote", "fade"} == files


def _section(title: str) -> str:
    """Return the text of a section of the architecture page."""
    return ARCHITECTURE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


WALKS = dict(re.findall(r"^### (The walk of .*?)\n(.*?)(?=^#{2,3} |\Z)", ARCHITECTURE.read_text(), re.MULTILINE | re.DOTALL))


def test_the_walks_are_there() -> None:
    job = [f"The walk of one job on {store}" for store in ("Redis", "SQLite", "PostgreSQL")]
    others = ("job in a transaction", "heartbeat", "cancellation", "firing", "shutdown", "death")
    assert list(WALKS) == [*job, *(f"The walk of a {each}" for each in others)]


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_goes_through_at_most_20_files(walk: str) -> None:
    assert 5 <= len(set(_PATH.findall(WALKS[walk]))) <= 20


@pytest.mark.parametrize("walk", WALKS)
def test_each_function_of_a_walk_is_in_a_file_of_its_step(walk: str) -> None:
    steps = re.findall(r"^\d+\. (.+)$", WALKS[walk], re.MULTILINE)
    assert steps
    for step in steps:
        defined = {name for path in _PATH.findall(step) for name in _functions_of(ROOT / path)}
        missing = [name for name in re.findall(r"`(\w+)\(\)`", step) if name not in defined]
        assert missing == [], step


def _functions_of(file: Path) -> set[str]:
    """Return the names of the functions and methods that a file of Python, Lua or SQL defines."""
    return set(re.findall(r"^ *(?:async def|def|local function|CREATE.* FUNCTION @\.)\s*(\w+)", file.read_text(), re.MULTILINE))
