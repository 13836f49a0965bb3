"""2,000 spoilt values in each store, some in every round, beside valid jobs. See tests/support/spoilt_scene.py."""

from __future__ import annotations

import itertools
import os
import resource

import pytest

from tests.support.harnesses import BROKERS, MemoryHarness, StoreHarness
from tests.support.spoilt_scene import go_through
from tests.support.world import World

WANTED = int(os.environ.get("SPOILINGS", "2000"))
MAX_GROWTH_KIB = 256 * 1024


@pytest.mark.parametrize("harness", [harness for harness in BROKERS if harness is not MemoryHarness], ids=lambda harness: harness.name)
async def test_2000_spoilt_values(harness: type[StoreHarness]) -> None:
    """None of them costs a neighbour its run, a session its life, or the process its memory."""
    spoilt, before = 0, 0
    for seed in itertools.count(int(os.environ.get("FIRST_SEED", "1000"))):
        async with World(harness) as world:
            spoilt += await go_through(world, seed)
        before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if spoilt >= WANTED:
            break
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{harness.name}: {spoilt:,} values spoilt, the process has grown by {growth:,} KiB")
    assert growth < MAX_GROWTH_KIB
