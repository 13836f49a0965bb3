from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import filterfalse
from pathlib import Path
from typing import Final

import pytest

from tests.support import tiers
from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.world import World

HERE: Final = Path(__file__).parent

OF_EACH_STORE: Final = frozenset(f"test_{module}" for module in ("listen", "nudges", "spoilt_rows", "traces", "transactional"))
"""Modules whose cases all run on each store, as tests marked `each_store` do. What others rely on there, `tests/seam` tests on each."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run rules of the engine on memory and, in turn, on one other store. `python -m tests.conformance` runs all of them on every store."""
    left = tiers.other_stores_turns([item for item in items if item.path.parent == HERE and not _is_of_each_store(item)])
    config.hook.pytest_deselected(items=list(left))
    items[:] = list(filterfalse(left.__contains__, items))


def _is_of_each_store(item: pytest.Item) -> bool:
    return item.path.stem in OF_EACH_STORE or item.get_closest_marker("each_store") is not None


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An empty, open broker of each kind in turn."""
    async with World(request.param) as opened:
        yield opened


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
def any_harness(request: pytest.FixtureRequest) -> type[StoreHarness]:
    """Each kind of store in turn, for tests that run their own loops."""
    harness: type[StoreHarness] = request.param
    return harness
