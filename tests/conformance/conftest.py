from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.homes import BROKERS, Home
from tests.support.world import World


@pytest.fixture(params=BROKERS, ids=lambda home: home.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An empty, open broker of each kind in turn."""
    async with World(request.param) as opened:
        yield opened


@pytest.fixture(params=BROKERS, ids=lambda home: home.name)
def any_home(request: pytest.FixtureRequest) -> type[Home]:
    """Each kind of store in turn, for tests that run loops of their own."""
    home: type[Home] = request.param
    return home
