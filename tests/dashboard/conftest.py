"""A dashboard over the stores of the suite, and a client that calls it on the test's event loop."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest

from taskflow.app.app import default_app
from taskflow.dashboard import memo
from tests.dashboard.site import Site
from tests.support.harnesses import BROKERS, MemoryHarness
from tests.support.world import World


@pytest.fixture(autouse=True)
def _reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine any read is slow, and would be cached."""
    monkeypatch.setattr(memo, "SLOW", math.inf)


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A world on each kind of store."""
    async with World(request.param) as world:
        with default_app().using(world.broker):
            yield world


@pytest.fixture
async def memory() -> AsyncIterator[World]:
    async with World(MemoryHarness) as world:
        with default_app().using(world.broker):
            yield world


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """The dashboard for a person who may act and see arguments."""
    async with Site() as site:
        yield site
