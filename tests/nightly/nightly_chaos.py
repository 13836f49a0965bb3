"""The short form of tests/long/long_chaos.py, with one seed: it shows that the chaos test runs."""

from __future__ import annotations

from tests.cli.conftest import new_store, shell
from tests.cli.processes import Shell
from tests.long.chaos.places import RedisPlace
from tests.long.chaos.play import play

__all__ = ["new_store", "shell"]


async def test_a_short_chaos(shell: Shell) -> None:
    with RedisPlace() as place:
        await play(shell, place, seed=4, seconds=12.0, ttl=6.0)
