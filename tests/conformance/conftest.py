from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import compress
from pathlib import Path
from typing import Final

import pytest

from tests.support import tiers
from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.world import World

HERE: Final = Path(__file__).parent

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
    chosen = [not (_runs_in_turn(item) and tiers.is_another_stores_turn(item)) for item in items]
    config.hook.pytest_deselected(items=[item for item, is_chosen in zip(items, chosen, strict=True) if not is_chosen])
    items[:] = list(compress(items, chosen))


def _runs_in_turn(item: pytest.Item) -> bool:
    """Return True for a rule of the engine, and for a test with several cases, which differ by a value that a store only keeps."""
    if item.path.parent != HERE or item.path.stem in OF_EACH_STORE:
        return False
    return item.path.stem in OF_THE_ENGINE or (
        isinstance(item, pytest.Function) and hasattr(item, "callspec") and len(item.callspec.params) > 1
    )


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
