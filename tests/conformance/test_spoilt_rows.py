"""One bad row spoils one job. `python -m tests.long` does the same 2,000 times on each store."""

from __future__ import annotations

import pytest

from tests.support.spoilt_scene import go_through
from tests.support.world import World


@pytest.mark.parametrize("seed", range(2))
async def test_unreadable_row__of_any_kind(world: World, seed: int) -> None:
    """Whichever single value of a job or session is spoilt, its neighbours run, and every operation and command goes on past it."""
    assert await go_through(world, seed) > 10
