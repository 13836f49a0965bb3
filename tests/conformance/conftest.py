from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.world import World


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An empty, open broker of each kind in turn."""
    async with World(request.param) as opened:
        yield opened


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
def any_harness(request: pytest.FixtureRequest) -> type[StoreHarness]:
    """Each kind of store in turn, for tests that run loops of their own."""
    harness: type[StoreHarness] = request.param
    return harness
