from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

from tests.support import tiers


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: most tests wait most of their time, so a processor has room for several."""
    return max(4, 5 * len(os.sched_getaffinity(0)) // 2)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Several workers respect `xdist_group` without being asked."""
    if config.getoption("numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadgroup"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test's tiers before `-m` chooses; and begin with the slow ones, so that no worker has one left at the end."""
    for item in items:
        if item.path.is_relative_to(tiers.TESTS):
            tiers.mark(item)
    items.sort(key=tiers.is_fast)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Replace lone surrogates, which some tests print: a report with one cannot be sent to the process that shows it."""
    report = yield
    return report and json.loads(json.dumps(report, ensure_ascii=False).encode(errors="replace"))


@pytest.fixture(autouse=True, scope="session")
def _hears_signals() -> None:
    """Also where the tests themselves are run by nohup, or in the background of a script: their processes would ignore what they ignore."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
