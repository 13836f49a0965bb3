"""Poison jobs with `on_failure`: they end in a settlement that carries the follow-up. [poison_follow_up]"""

from __future__ import annotations

import pytest

from taskflow.broker.admin import View
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.record import Record, Status
from taskflow.model.verdict import Discarded, Settled, Settlement
from tests.support.listing import listed
from tests.support.world import World

CALL = b"\x81\xa3job\xa7restore"
LONG = 1_000_000.0
POISON = "poison: its worker was lost 2 times in a row while it had this job"


def shortened(world: World) -> World:
    """Return a world in which the second crash makes a job poison, and the fourth ends it even if no follow-up was sent."""
    return world.under(max_crashes=1, crash_backoff=(0.0, 5.0))


async def crash(world: World, job: Envelope) -> Record:
    session = await world.a_session("lost")
    assert len(await world.claim(session)) == 1
    await world.reap(session)
    return await world.record(job)


async def poisoned(world: World, **fields: object) -> Envelope:
    """Return a job that is poison and waits for its follow-up."""
    envelope = await world.add(on_failure=CALL, **fields)
    await crash(world, envelope)
    assert (await crash(world, envelope)).status is Status.READY
    return envelope


async def leased(world: World) -> Lease:
    [lease] = await world.claim(await world.a_session(ttl=LONG))
    return lease


def ended(lease: Lease, *follow_ups: Envelope) -> Settlement:
    """Return the settlement with which a worker ends a poison job."""
    assert lease.poison is not None
    verdict = Discarded(lease.poison)
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, follow_ups=follow_ups)


async def test_poison_follow_up__does_not_expire(world: World) -> None:
    """Its follow-up is sent, however late a worker comes, unless the job is cancelled as any waiting job can be."""
    world = shortened(world)
    envelope = await poisoned(world, expires=100.0)
    world.clock.advance(200.0)

    assert (await world.upkeep()).expired == 0
    assert await world.cancel(envelope) is Status.READY
    assert await world.status(envelope) is Status.CANCELLED


@pytest.mark.parametrize("tags", [(), ("a",), ("a", "b" * 40), tuple(f"{n}" * 100 for n in range(10))])
async def test_poison_follow_up(world: World, tags: tuple[str, ...]) -> None:
    """The job is READY at once, its lease says why it is poison, and one settlement ends it and adds the follow-up."""
    world = shortened(world)
    envelope = await poisoned(world, headers={"a": "b"}, max_attempts=1, tags=tags)
    waiting = await world.record(envelope)
    assert (waiting.reason, waiting.crashes, waiting.on_failure) == (POISON, 2, CALL)
    assert waiting.waiting_for is not None

    lease = await leased(world)
    follow_up = world.an_envelope(queue="next")
    assert (lease.poison, lease.envelope.on_failure, lease.envelope.headers, lease.crashes) == (POISON, CALL, {"a": "b"}, 2)
    assert await world.settle(ended(lease, follow_up)) == [Settled.OK]

    record = await world.record(envelope)
    assert (record.status, record.reason, record.crashes, record.failures, len(record.errors)) == (Status.FAILED, POISON, 2, 0, 2)
    assert (record.ended_at, record.payload) == (instant_of(world.clock.wall()), envelope.payload)
    assert record.last_error == record.errors[-1]
    assert await world.status(follow_up) is Status.READY


async def test_poison_follow_up__not_without_one(world: World) -> None:
    """Other jobs end as poison in the store, whatever their options begin with, and none of their leases is poison."""
    world = shortened(world)
    for fields in ({}, {"timeout": 5.0}, {"headers": {"f": "a1f"}}):
        envelope = await world.add(**fields)
        assert (await crash(world, envelope)).status is Status.READY
        [lease] = await world.claim(session := await world.a_session("lost"))
        assert lease.poison is None
        await world.reap(session)
        assert await world.status(envelope) is Status.FAILED


async def test_poison_follow_up__a_worker_dies_over_it(world: World) -> None:
    """It waits as after other crashes, and is offered again. If workers keep dying over it, it ends without its follow-up and says so."""
    world = shortened(world)
    envelope = await poisoned(world)
    record = await crash(world, envelope)
    assert (record.status, record.due_at) == (Status.SCHEDULED, instant_of(world.clock.wall() + 5_000_000))
    await world.pass_time(5.0)
    [lease] = await world.claim(session := await world.a_session("lost"))
    assert lease.poison == POISON.replace("2", "3")

    await world.reap(session)

    record = await world.record(envelope)
    assert (record.status, record.crashes) == (Status.FAILED, 4)
    assert record.reason is not None
    assert record.reason.startswith("poison: ")
    assert record.reason.endswith("its on_failure call was not sent, because no worker survived to send it")
    assert (await listed(world.broker.admin, View(poison=True)))[0].id == envelope.id


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_poison_follow_up__not_if_it_would_be_cancelled(world: World, is_replaced: bool) -> None:
    """A run that was asked to stop, or that a replacement waits behind, is CANCELLED when its worker is lost, not poison."""
    world = world.under(max_crashes=0)
    envelope, session = await world.add(on_failure=CALL, key="k"), await world.a_session("lost")
    await world.claim(session)
    successor = world.an_envelope(key="k", on_conflict=OnConflict.REPLACE)
    if is_replaced:
        await world.enqueue(successor)
    else:
        await world.cancel(envelope)

    await world.reap(session)

    assert await world.status(envelope) is Status.CANCELLED
    assert not is_replaced or await world.status(successor) is Status.READY


async def test_poison_follow_up__counts_as_poison_at_its_end(world: World) -> None:
    """While it waits, the filter for poison does not find it, and a purge of poison leaves it alone."""
    world = shortened(world)
    envelope = await poisoned(world)
    assert await listed(world.broker.admin, View(poison=True)) == []
    assert await world.broker.admin.purge(View(poison=True)) == 0

    await world.settle(ended(await leased(world)))

    assert [record.id for record in await listed(world.broker.admin, View(poison=True))] == [envelope.id]
