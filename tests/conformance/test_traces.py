"""What the protocol's model found out about broken rules, put to every real broker."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.mutants import Mutant, beats, claims, fences, harness_of, settling
from tests.conformance.traces import replay
from tests.protocol_model import traces
from tests.protocol_model.traces import TRACES, Trace
from tests.support.world import World

CONVICTED: tuple[tuple[Trace, type[Mutant]], ...] = (
    (traces.FENCE_BY_ID, fences.SettlesById),
    (traces.FENCE_BY_ID_AND_STATE, fences.SettlesByIdAndState),
    (traces.FENCE_BY_EPOCH, fences.SettlesByEpoch),
    (traces.FENCE_BY_CLAIM_ID, fences.SettlesByClaimId),
    (traces.CLAIM_WITHOUT_SESSION_CHECK, claims.ClaimsForTheDead),
    (traces.NO_GHOSTS, beats.FindsNoGhosts),
    (traces.GHOSTS_BY_NAME_ALONE, beats.TakesTheUnseenForGhosts),
    (traces.SETTLE_WITHOUT_REPEAT, settling.RepeatIsStale),
    (traces.BEAT_REVIVES, beats.BeatRevives),
)


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.rules)
async def test_a_broker_answers_as_the_correct_rules_do(world: World, trace: Trace) -> None:
    """At every step of every counterexample."""
    await replay(world, trace)


@pytest.mark.parametrize(("trace", "mutant"), CONVICTED, ids=lambda value: getattr(value, "rules", ""))
def test_a_trace_convicts_the_broker_that_is_broken_so(trace: Trace, mutant: type[Mutant]) -> None:
    """The replay can tell: a broker with the trace's own defect answers otherwise."""

    async def put_to_it() -> None:
        async with World(harness_of(mutant)) as world:
            await replay(world, trace)

    with pytest.raises(AssertionError):
        asyncio.run(put_to_it())
