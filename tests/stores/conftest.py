from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import cli
from tests.cli.processes import Shell
from tests.stores.drivers import DRIVERS, Driver

__all__ = ["cli"]


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TASKFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=DRIVERS, ids=lambda kind: kind.name)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """A server of each kind in turn, which the test may harm."""
    with request.param() as driver:
        yield driver


@pytest.fixture
def _short_timeouts(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.shorten_timeouts(monkeypatch)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Processes in a folder with a module of jobs."""
    with Shell(tmp_path) as opened:
        opened.write("tasks.py", "from taskflow import job\n\n@job\nasync def note(number: int) -> None: ...\n")
        yield opened
