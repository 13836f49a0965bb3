"""The short form of tests/long/long_chaos.py, with one seed: workers, producers and stores in trouble, and a judge."""

from __future__ import annotations

import pytest

from tests.cli.processes import Shell
from tests.long.chaos.places import Place, PostgresPlace, RedisPlace, SqlitePlace
from tests.long.chaos.play import play, play_in_memory

pytestmark = pytest.mark.unmeasured

SEED = 4
SECONDS = 12.0


@pytest.mark.parametrize("kind", [SqlitePlace, RedisPlace, PostgresPlace], ids=lambda kind: kind.name)
async def test_a_short_chaos(shell: Shell, kind: type[Place]) -> None:
    with kind() as place:
        await play(shell, place, seed=SEED, seconds=SECONDS, ttl=6.0)


def test_a_short_chaos_in_memory(shell: Shell) -> None:
    play_in_memory(shell, seed=SEED, seconds=SECONDS)
