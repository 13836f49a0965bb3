from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import compress
from typing import Final
from zlib import crc32

import pytest

from tests.support.harnesses import BROKERS, MemoryHarness, StoreHarness
from tests.support.world import World

OF_THE_ENGINE: Final = frozenset(
    f"test_{module}" for module in ("beat", "cancel_read", "ends", "joins", "moves", "outage", "poison_follow_up", "turns")
)
"""Modules about rules that are the engine's alone. A store can only break them by what `tests/seam` and the other modules find."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run rules of the engine on memory and one more store, in turn. `python -m tests.conformance` runs all on all."""
    chosen = [not _is_spared(item) for item in items]
    config.hook.pytest_deselected(items=[item for item, is_chosen in zip(items, chosen, strict=True) if not is_chosen])
    items[:] = list(compress(items, chosen))


def _is_spared(item: pytest.Item) -> bool:
    if item.path.stem not in OF_THE_ENGINE or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    others = [harness for harness in BROKERS if harness is not MemoryHarness]
    mine = others[crc32(item.originalname.encode()) % len(others)]
    return item.callspec.params.get("world", mine) not in (MemoryHarness, mine)


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
