"""The short form of tests/long/long_chaos.py, with one seed: workers, producers and a store in trouble, and a judge.

It shows that the chaos test runs. Most of its time it waits, so the other stores are left to the long form.
"""

from __future__ import annotations

import pytest

from tests.cli.processes import Shell
from tests.long.chaos.places import RedisPlace
from tests.long.chaos.play import play, play_in_memory

pytestmark = pytest.mark.unmeasured

SEED = 4
SECONDS = 12.0


async def test_a_short_chaos(shell: Shell) -> None:
    with RedisPlace() as place:
        await play(shell, place, seed=SEED, seconds=SECONDS, ttl=6.0)


def test_a_short_chaos_in_memory(shell: Shell) -> None:
    play_in_memory(shell, seed=SEED, seconds=SECONDS)
