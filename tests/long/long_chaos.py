"""Three workers, a supervisor and two producers while processes are killed and stopped, connections cut and servers restarted.

Each test takes CHAOS_SECONDS (600) and a little more. CHAOS_SEED repeats a run, as far as processes let themselves be repeated.
"""

from __future__ import annotations

import pytest

from tests.cli.processes import Shell
from tests.long.chaos.places import Place, places
from tests.long.chaos.play import SECONDS, SEED, play, play_in_memory

TTL = 6.0


@pytest.mark.parametrize("kind", places(), ids=lambda kind: kind.name)
async def test_chaos(shell: Shell, kind: type[Place]) -> None:
    """No accepted job is lost, none ends twice, nothing is stuck; `tests/long/chaos/judge.py` has all the rules."""
    with kind() as place:
        await play(shell, place, seed=SEED, seconds=SECONDS, ttl=TTL)


def test_chaos_in_memory(shell: Shell) -> None:
    """The same rules in a separate process, which can't be killed: its workers and their services are cancelled, and its clocks jump."""
    play_in_memory(shell, seed=SEED, seconds=SECONDS)
