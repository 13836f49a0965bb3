from __future__ import annotations

import os
from collections.abc import AsyncIterator
from itertools import compress
from typing import Final
from zlib import crc32

import pytest

from tests.conformance import clauses
from tests.support.harnesses import BROKERS, MemoryHarness, StoreHarness
from tests.support.world import World

OF_THE_ENGINE: Final = frozenset(
    f"test_{module}"
    for module in (
        "beat",
        "cancel_read",
        "admin_acts",
        "ends",
        "flows",
        "gates",
        "joins",
        "moves",
        "outage",
        "poison_follow_up",
        "schedules",
        "turns",
    )
)
"""Modules about rules that only the engine implements. A store can break them only in ways that `tests/seam` and the other modules find."""

OF_EACH_STORE: Final = frozenset(
    f"test_{module}" for module in ("failpoints", "listen", "nudges", "spoilt_rows", "traces", "transactional")
)
"""Modules whose cases all run on each store. In the others, the cases of one test differ by a value that a store only keeps."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run rules of the engine on memory and, in turn, on one other store. `python -m tests.conformance` runs all of them on every store."""
    chosen = [not _is_spared(item) for item in items]
    config.hook.pytest_deselected(items=[item for item, is_chosen in zip(items, chosen, strict=True) if not is_chosen])
    items[:] = list(compress(items, chosen))


def _is_spared(item: pytest.Item) -> bool:
    if (
        os.environ.get(clauses.ON_ALL)
        or item.path.stem in OF_EACH_STORE
        or not isinstance(item, pytest.Function)
        or not hasattr(item, "callspec")
    ):
        return False
    if item.path.stem not in OF_THE_ENGINE and len(item.callspec.params) == 1:
        return False
    others = [harness for harness in BROKERS if harness is not MemoryHarness]
    mine = next((harness for harness in others if harness is item.callspec.params.get("world")), None)
    return mine is not None and mine is not others[crc32(item.name.replace(mine.name, "").encode()) % len(others)]


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
