"""A record that ends too early affects only its own job. Scripts read fixed places of a record, which may not be there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from taskflow.model.envelope import Envelope
from taskflow.model.limits import Gate, gate_id
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope
from tests.support.harnesses import BROKERS
from tests.support.spoiling import Spoiler
from tests.support.verdicts import succeeded
from tests.support.world import World

[REDIS] = [harness for harness in BROKERS if harness.name == "redis"]
LENGTHS = range(1, 240, 2)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World(REDIS) as opened:
        yield opened


@pytest.fixture
def spoiler(world: World) -> Iterator[Spoiler]:
    opened = world.harness.spoiler()
    assert opened is not None
    with contextlib.closing(opened):
        yield opened


def _two_and_those_behind_them(length: int, *, is_limited: bool) -> list[Envelope]:
    """Return two jobs and, behind each, another one with the same limit, in a queue of their own."""
    gates = [Gate(gate_id("limit", f"{length} {key}"), "limit", f"{length} {key}", 1) for key in ("first", "second")]
    return [an_envelope(queue=f"of {length}", limits=(gate,) if is_limited else ()) for gate in gates for _ in range(2)]


def _cut(spoiler: Spoiler, job_id: bytes, length: int) -> bool:
    [record] = [value for value in spoiler.values_of(job_id) if value.place == "jobs.record"]
    assert isinstance(record.stored, bytes)
    return length < len(record.stored) and spoiler.write(record, record.stored[:length])


@pytest.mark.parametrize("is_limited", [False, True], ids=["plain", "limited"])
@pytest.mark.parametrize("of", ["a run", "a job behind it"])
async def test_runs_beside_a_cut_record_end(world: World, spoiler: Spoiler, is_limited: bool, of: str) -> None:
    session, cut = await world.a_session(), 0
    for length in LENGTHS:
        envelopes = _two_and_those_behind_them(length, is_limited=is_limited)
        await world.broker.enqueue(envelopes)
        first, *_, last = await world.claim(session, [f"of {length}"], 2 if is_limited else 4)
        if _cut(spoiler, first.envelope.id if of == "a run" else envelopes[1].id, length):
            cut += 1
            _, answer = await world.broker.settle([succeeded(lease, limits=lease.envelope.limits) for lease in (first, last)])
            assert answer is Settled.OK, length
    assert cut > 10


@pytest.mark.parametrize("is_limited", [False, True], ids=["plain", "limited"])
async def test_jobs_beside_a_cut_record_are_claimed_and_cancelled(world: World, spoiler: Spoiler, is_limited: bool) -> None:
    session, cut = await world.a_session(), 0
    for length in LENGTHS:
        first, *_, last = envelopes = _two_and_those_behind_them(length, is_limited=is_limited)
        await world.broker.enqueue(envelopes)
        if _cut(spoiler, first.id, length):
            cut += 1
            leases = await world.claim(session, [f"of {length}"], 10)
            assert envelopes[2].id in [lease.envelope.id for lease in leases], length
            await world.beat(session, *leases)
            assert len(await world.broker.cancel([envelope.id for envelope in envelopes])) == 4
            assert await world.broker.read([last.id]) is not None
    assert cut > 10
