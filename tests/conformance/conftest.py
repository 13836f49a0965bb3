from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.homes import Home, homes_of_the_suite
from tests.support.world import World


@pytest.fixture(params=homes_of_the_suite(), ids=lambda home: home.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An empty, open broker of each kind in turn."""
    async with World(request.param) as opened:
        yield opened


@pytest.fixture(params=homes_of_the_suite(), ids=lambda home: home.name)
def any_home(request: pytest.FixtureRequest) -> type[Home]:
    """Each kind of store in turn, for tests that run loops of their own."""
    home: type[Home] = request.param
    return home
