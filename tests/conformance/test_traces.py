"""What the protocol's model found out about broken rules, checked on every real broker."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.mutants import Mutant, harness_of, leases
from tests.conformance.traces import replay
from tests.protocol_model.traces import TRACES
from tests.support.world import World

CONVICTED: dict[str, type[Mutant]] = {
    "fence by id": leases.SettlesById,
    "fence by id and state": leases.SettlesByIdAndState,
    "fence by epoch": leases.SettlesByEpoch,
    "fence by claim id": leases.SettlesByClaimId,
    "claim without session check": leases.ClaimsForTheDead,
    "no ghosts": leases.FindsNoGhosts,
    "ghosts by name alone": leases.TakesTheUnseenForGhosts,
    "settle without repeat": leases.RepeatIsStale,
    "beat revives": leases.BeatRevives,
}


@pytest.mark.parametrize("name", TRACES)
async def test_a_broker_answers_as_the_correct_rules_do(world: World, name: str) -> None:
    """This holds at every step of every counterexample."""
    await replay(world, TRACES[name])


@pytest.mark.parametrize("name", CONVICTED)
def test_a_trace_convicts_the_broker_that_is_broken_so(name: str) -> None:
    """The replay detects defects: a broker with the trace's own defect answers differently."""

    async def put_to_it() -> None:
        async with World(harness_of(CONVICTED[name])) as world:
            await replay(world, TRACES[name])

    with pytest.raises(AssertionError):
        asyncio.run(put_to_it())
