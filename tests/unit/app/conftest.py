from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from taskflow.app.app import default_app
from tests.support.harnesses import BROKERS
from tests.support.world import World
from tests.unit.app.bench import Bench


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TASKFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """The default application on an empty store of each kind in turn."""
    async with World(request.param) as world:
        with default_app().using(world.broker):
            bench = Bench(world, default_app())
            try:
                yield bench
            finally:
                bench.close()
