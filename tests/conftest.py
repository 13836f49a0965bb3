from __future__ import annotations

import gc
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Generator
from itertools import filterfalse
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

from tests.support import tiers

_MEASURE: Final = "COVERAGE_PROCESS_CONFIG"
"""Coverage sets this variable to make a process measure."""


def _keep_bytecode() -> None:
    """Keep bytecode beside the checkout where the environment says that none is to be written into it.

    Otherwise each worker compiles all tests, and each of a thousand processes that they start compiles the package: a third of the time."""
    folder = Path(tempfile.gettempdir(), f"taskflow-tests-bytecode-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        del os.environ["PYTHONDONTWRITEBYTECODE"]


if os.environ.get("PYTHONDONTWRITEBYTECODE"):
    _keep_bytecode()

# A busy machine generates slowly, and runs an example slowly.
settings.register_profile("any speed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of workers for `-n auto`: most tests wait most of their time, except the fast ones."""
    processors = len(os.sched_getaffinity(0))
    return max(2, 3 * processors // 2) if config.option.markexpr == "fast" else max(4, 3 * processors)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not load folders without a fast test for `-m fast`: that would take as long as the tests. Load `browser` only if it is named."""
    return tiers.is_left_out(collection_path, config.option.markexpr) or None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler of `--dist loadgroup` without two faults of xdist 3.8.

    If a worker process ends, xdist queues all the tests of that worker once more: those that have run, and the one that ended it. A group
    without tests left keeps a worker from asking for more, and then the run never ends. The other test may end one process after another.
    """
    from xdist.scheduler import LoadGroupScheduling

    def remove_node(node: Any) -> str | None:
        groups = scheduler.assigned_work[node]
        crashed = next((test for group in groups.values() for test, ended in group.items() if not ended), None)
        for group in groups.values():
            if crashed in group:
                group[crashed] = True
        scheduler.assigned_work[node] = {name: group for name, group in groups.items() if not all(group.values())}
        queue_again(node)
        return crashed

    if config.getvalue("dist") != "loadgroup":
        return None
    scheduler = LoadGroupScheduling(config, log)
    queue_again, scheduler.remove_node = scheduler.remove_node, remove_node
    return scheduler


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect without the garbage collector, and keep it from searching the collected tests later: they all last until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test's tiers before `-m` chooses; and begin with the slow ones, so that no worker has one left at the end.

    Leave out cases of stores whose turn it is not."""
    for item in items:
        tiers.mark(item)
    left = tiers.left_to_others(items)
    config.hook.pytest_deselected(items=list(left))
    items[:] = sorted(filterfalse(left.__contains__, items), key=tiers.is_fast)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Keep an `unmeasured` test and its processes from measuring coverage, which takes them more than twice as long."""
    if not item.get_closest_marker("unmeasured") or _MEASURE not in os.environ:
        return (yield)
    coverage = sys.modules.get("coverage")
    config, measuring = os.environ.pop(_MEASURE), None if coverage is None else coverage.Coverage.current()
    if measuring is not None:
        measuring.stop()
    try:
        return (yield)
    finally:
        os.environ[_MEASURE] = config
        if measuring is not None:
            measuring.start()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Replace lone surrogates, which some tests print: a report with one cannot be sent to the process that shows it."""
    report = yield
    return _without_surrogates(report)


def _without_surrogates(value: Any) -> Any:
    """Keep the types: `-rs` expects the place and the reason of a skipped test as a tuple."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(each) for key, each in value.items()}
    return type(value)(map(_without_surrogates, value)) if type(value) in (list, tuple) else value


@pytest.fixture(autouse=True, scope="session")
def _hears_signals() -> None:
    """Restore signals even where nohup or a background script runs the tests: their processes would ignore what they ignore."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
