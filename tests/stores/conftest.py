from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stores.drivers import DRIVERS, Driver


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TASKFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=DRIVERS, ids=lambda kind: kind.name)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """A server of each kind in turn, which the test may damage."""
    with request.param.started() as driver:
        yield driver
