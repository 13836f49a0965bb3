from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.seam.harness import STORES, SeamStore


@pytest.fixture(params=STORES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[SeamStore]:
    """A kind of store."""
    chosen: type[SeamStore] = request.param
    return chosen


@pytest.fixture
async def store(kind: type[SeamStore]) -> AsyncIterator[SeamStore]:
    """An empty store of this kind."""
    async with kind.open() as opened:
        yield opened
