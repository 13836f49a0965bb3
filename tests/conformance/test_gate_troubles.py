"""Limits when several things happen at once, or much has happened meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.limits import RATE, Gate, gate_id
from taskflow.model.record import Status
from taskflow.model.verdict import HandedBack, Settlement
from tests.support.verdicts import retried, settlement, succeeded
from tests.support.world import World

MINUTE: Final = 60.0
TICK: Final = 0.5
"""Seconds between two calls of a worker."""

MOST_CLAIMS: Final = 1_000
"""Claims after which a test gives up that ends all jobs: some fifty are enough."""


def gate(most: int = 1, limit: str = "limit", key: str = "") -> Gate:
    return Gate(gate_id(limit, key), limit, key, most)


async def limited(world: World, *gates: Gate, **fields: Any) -> Envelope:
    return await world.add(limits=gates or (gate(),), **fields)


async def statuses(world: World, *jobs: Envelope | Lease) -> list[Status | None]:
    return [await world.status(job) for job in jobs]


async def taken(world: World) -> dict[str, tuple[int, int]]:
    """Return the slots taken and the jobs that wait, for each limit."""
    return {record.limit: (record.running, record.waiting) for record in await world.broker.admin.limits()}


def ended(lease: Lease) -> Settlement:
    return succeeded(lease, limits=lease.envelope.limits)


@pytest.mark.parametrize(("sent", "burst", "most"), [(600, 10, 110), (1_300, 1, 102)])
async def test_gate_rate__workers_were_down(world: World, sent: int, burst: int, most: int) -> None:
    """100 a minute, and workers start after ten minutes without any. In any minute at most n + burst jobs start, and those that were due in
    the second before. All that may start do so."""
    limits = (Gate(gate_id("limit", "", kind=RATE), "limit", "", 100, int(MINUTE * 1_000_000), burst),)
    await world.enqueue(*(world.an_envelope(limits=limits) for _ in range(sent)))
    world.clock.advance(10 * MINUTE)
    session, starts, late = await world.a_session(ttl=1_000_000.0), list[float](), 0
    for tick in range(int(1.25 * MINUTE / TICK)):
        await world.upkeep()
        leases = await world.claim(session)
        back = [settlement(lease, HandedBack(counts=False, limits=())) for lease in leases if lease.waited > 1_000_000]
        done = [ended(lease) for lease in leases if lease.waited <= 1_000_000]
        await world.settle(*back, *done)
        starts += [tick * TICK] * len(done)
        late += len(back)
        assert late <= sent  # each is handed back at most once
        world.clock.advance(TICK)
    assert max(sum(at <= start <= at + MINUTE for start in starts) for at in starts) <= most
    assert len(starts) >= 120


@pytest.mark.parametrize("most", [1, 3])
async def test_gate_passes_on__reaped_while_settled(world: World, most: int) -> None:
    """A settlement that comes while its session is reaped counts once: no slot is lost, and none is given twice."""
    other = world.broker.sibling()
    for _ in range(5):
        session = await world.a_session()
        jobs = [await limited(world, gate(most)) for _ in range(2 * most)]
        leases = await world.claim(session)
        assert len(leases) == most
        await world.lapse(session)
        await asyncio.gather(other.upkeep(100), *(world.broker.settle([ended(lease)]) for lease in leases))
        await world.upkeep()
        found = await statuses(world, *jobs)
        assert found.count(Status.READY) == most
        assert (await taken(world))["limit"][0] == most
        while leases := await world.claim(await world.a_session(ttl=1_000_000.0)):
            assert len(leases) <= most
            await world.settle(*map(ended, leases))
        assert await statuses(world, *jobs) == [Status.SUCCEEDED] * len(jobs)
        assert await taken(world) == {}
    await other.close()


async def test_gate_all_or_none__opposed_at_once(world: World) -> None:
    """Several clients send and end jobs that name two gates in opposite order. None waits for ever, and no slot is lost."""
    one, other = gate(2, "one"), gate(2, "other")
    brokers = [world.broker.sibling() for _ in range(4)]
    sent = [[world.an_envelope(limits=order) for order in ((one, other), (other, one)) * 5] for _ in brokers]

    async def send(broker: Broker, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            await broker.enqueue([envelope])

    sending = asyncio.gather(*map(send, brokers, sent))
    session, done = await world.a_session(ttl=1_000_000.0), 0
    for _ in range(MOST_CLAIMS):
        leases = await world.claim(session)
        assert len(leases) <= 2
        await asyncio.gather(*(broker.settle([ended(lease)]) for broker, lease in zip(brokers, leases, strict=False)))
        done += len(leases)
        await asyncio.sleep(0)
        if sending.done() and done == sum(map(len, sent)):
            break
    assert done == sum(map(len, sent))
    await sending
    assert await taken(world) == {}
    for broker in brokers:
        await broker.close()


async def test_gate_passes_on__not_for_a_ghost(world: World) -> None:
    """A lease whose answer was lost holds its slot. The job returns to its queue with it, and passes it on when it has run."""
    session = await world.a_session(ttl=1_000_000.0)
    first, second = await limited(world), await limited(world)
    assert len(await world.claim(session)) == 1  # the worker never gets this answer
    world.clock.advance(world.rules.ghost_after + 1.0)
    assert (await world.beat(session)).ghosts == 1
    assert await statuses(world, first, second) == [Status.READY, Status.SCHEDULED]
    assert await taken(world) == {"limit": (1, 1)}
    [lease] = await world.claim(session)
    await world.settle(ended(lease))
    assert await statuses(world, first, second) == [Status.SUCCEEDED, Status.READY]


async def test_admin_set_limit__below_use(world: World) -> None:
    """If an operator lowers a number below the slots in use, no job gets a slot until as many have been given back."""
    jobs = [await limited(world, gate(3)) for _ in range(6)]
    leases = await world.claim(await world.a_session())
    await world.broker.admin.set_limit(gate(1), is_set=True)
    for number, lease in enumerate(leases, 1):
        await world.settle(ended(lease))
        assert (await statuses(world, *jobs)).count(Status.READY) == (number == 3)
    assert await taken(world) == {"limit": (1, 2)}


async def test_gate_passes_on__and_a_retry_waits(world: World) -> None:
    """A job that failed, and is due again while its gate is full, waits there without using up an attempt. It gets the slot in its turn."""
    first, second = await limited(world), await limited(world)
    session = await world.a_session(ttl=1_000_000.0)
    [lease] = await world.claim(session)
    await world.settle(retried(lease, 10.0))
    [other] = await world.claim(session)
    await world.pass_time(11.0)
    assert await statuses(world, first, second) == [Status.SCHEDULED, Status.RUNNING]
    record = await world.record(first)
    assert (record.attempt, record.waiting_for) == (2, "limit limit")
    third = await limited(world)
    await world.settle(ended(other))
    assert await statuses(world, first, third) == [Status.READY, Status.SCHEDULED]


async def test_gate_passes_on__after_a_crash_of_all(world: World) -> None:
    """If the worker of all holders is lost, no other job passes until one of them runs again or waits for another attempt."""
    jobs = [await limited(world, gate(3)) for _ in range(6)]
    for expected in ([Status.READY] * 3 + [Status.SCHEDULED] * 3, [Status.SCHEDULED] * 3 + [Status.READY] * 3):
        session = await world.a_session()
        assert len(await world.claim(session)) == 3
        await world.reap(session)
        assert await statuses(world, *jobs) == expected
    assert await taken(world) == {"limit": (3, 0)}


async def test_gate_forgets__while_it_gets_the_slot(world: World) -> None:
    """A job that is cancelled at the moment when it gets a slot passes it on, or is skipped."""
    other = world.broker.sibling()
    for _ in range(5):
        running, first, second = [await limited(world) for _ in range(3)]
        [lease] = await world.claim(await world.a_session())
        assert lease.envelope.id == running.id
        await asyncio.gather(other.cancel([first.id]), world.broker.settle([ended(lease)]))
        assert await statuses(world, first, second) == [Status.CANCELLED, Status.READY]
        await world.cancel(second)
        assert await taken(world) == {}
    await other.close()


# --- many jobs of another queue in front --------------------------------------------------------------------------


async def _behind_many(world: World, queue: str) -> tuple[Envelope, Envelope]:
    """Return a job that waits in the middle of 2,000 jobs of another queue, and the one of that queue that may pass the gate."""
    jobs = [world.an_envelope(limits=(gate(),), queue=queue) for _ in range(2_000)]
    served = world.an_envelope(limits=(gate(),))
    await world.enqueue(*jobs[:1_000], served, *jobs[1_000:])
    return served, jobs[0]


async def test_gate_paused__behind_thousands(world: World) -> None:
    """A job of another queue gets the slot that becomes free, although it waits behind many jobs of a paused queue."""
    served, first = await _behind_many(world, "paused")
    [lease] = await world.claim(await world.a_session(), ["paused"])
    assert lease.envelope.id == first.id
    await world.broker.admin.pause("paused")
    await world.settle(ended(lease))
    for _ in range(3):
        await world.upkeep()
    assert await world.status(served) is Status.READY


async def test_gate_taken_back__behind_thousands(world: World) -> None:
    """A job of another queue gets the slot, although it waits between many jobs of a queue without a worker."""
    served, first = await _behind_many(world, "unserved")
    assert await world.status(first) is Status.READY
    await world.pass_time(5.1)
    assert await world.status(served) is Status.READY
