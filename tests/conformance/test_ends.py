"""Ends of jobs without a settlement, which workers hear of by upkeep. [ends_heard] [ends_settled] [ends_unheard] [ends_bounded] ..."""

from __future__ import annotations

import asyncio

import pytest

from taskflow.broker import topics
from taskflow.broker.admin import View
from taskflow.broker.protocol import MAX_ENDS, PURGED_TTL, UpkeepResult
from taskflow.model.envelope import OnConflict
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.verdict import Settled
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import EVERYTHING, World, ids_of

LONG = 1_000_000.0


async def a_subscriber(world: World) -> Session:
    return await world.a_session("subscriber", ttl=LONG, wants_ends=True)


async def hear(world: World) -> UpkeepResult:
    return await world.broker.upkeep(EVERYTHING, ends=True)


async def heard(world: World) -> list[bytes]:
    """Return all ends that are recorded now, in order."""
    ends = list[bytes]()
    while (upkept := await hear(world)).ended:
        ends += upkept.ended
    return ends


async def test_ends_heard__cancelled(world: World) -> None:
    """Waiting jobs that are cancelled have ended, whatever they wait for; a running job has not."""
    await a_subscriber(world)
    running = await world.running()
    waiting = [await world.add(**fields) for fields in ({}, {"after": 60.0}, {"awaits": 1}, {"key": "k"})]
    for job in waiting:
        await world.cancel(job)
    await world.cancel(running)
    await world.cancel(waiting[0])

    assert await heard(world) == ids_of(waiting)
    assert await heard(world) == []


async def test_ends_heard__replaced(world: World) -> None:
    """The job that loses its key to another has ended, whichever client sent the other."""
    await a_subscriber(world)
    first = await world.add(key="k")
    second = await world.add(key="k", on_conflict=OnConflict.REPLACE)
    third = world.an_envelope(key="k", on_conflict=OnConflict.REPLACE)
    await world.settle(succeeded(await world.running(), follow_ups=(third,)))

    assert await heard(world) == ids_of([first, second])


async def test_ends_heard__purged(world: World) -> None:
    """Waiting jobs that are purged have ended; the end of those that had ended before was reported already."""
    await a_subscriber(world)
    waiting = [await world.add(), await world.add(key="k")]
    await world.settle(failed(await world.running()))

    assert await world.broker.admin.purge(View()) == 3

    assert sorted(await heard(world)) == sorted(ids_of(waiting))


async def test_ends_heard__by_the_loss_of_a_worker(world: World) -> None:
    """A job ends as poison, by upkeep or by a reported death; or as a run that was asked to stop, whose worker is lost or leaves. Poison
    that waits for its follow-up ends by a settlement."""
    world = world.under(max_crashes=0)
    await a_subscriber(world)
    lost, dies, leaves = [await world.a_session(name, ttl=ttl) for name, ttl in (("lost", 20.0), ("dies", LONG), ("leaves", LONG))]
    poisoned, stopped = [await world.running(lost), await world.running(dies)], [await world.running(lost), await world.running(leaves)]
    await world.running(dies, on_failure=b"call")
    for job in stopped:
        await world.cancel(job)
    await world.reap(lost)
    await world.die(dies)
    await world.beat(leaves, leaving=True)

    assert sorted(await heard(world)) == sorted(ids_of([*poisoned, *stopped]))


async def test_ends_heard__after_an_earlier_settlement(world: World) -> None:
    """A job that waits for its retry, or runs again, may end without a settlement like any other."""
    world = world.under(max_crashes=0)
    await a_subscriber(world)
    session = await world.a_session("lost", ttl=LONG)
    waits, runs = await world.running(session, queue="waits"), await world.running(session, queue="runs")
    await world.settle(retried(waits), handed_back(runs))
    await world.claim(session, ["runs"])
    await world.cancel(waits)
    await world.die(session)

    assert await heard(world) == ids_of([waits, runs])


@pytest.mark.parametrize("settlement", [retried, snoozed, parked, handed_back])
async def test_ends_heard__a_run_that_would_wait_again(world: World, settlement: SettlementOf) -> None:
    """If it is CANCELLED instead, its worker cannot tell this from a later cancellation, so only upkeep reports it."""
    await a_subscriber(world)
    stopped, replaced = await world.running(), await world.running(queue="q", key="k")
    await world.cancel(stopped)
    await world.add(queue="q", key="k", on_conflict=OnConflict.REPLACE)
    await world.settle(settlement(stopped), settlement(replaced))

    assert [await world.status(lease) for lease in (stopped, replaced)] == [Status.CANCELLED] * 2
    assert await heard(world) == ids_of([stopped, replaced])


async def test_ends_heard__a_portion_at_a_time(world: World) -> None:
    """The oldest ends come first, and the next call follows at once while more are left."""
    await a_subscriber(world)
    jobs = [await world.add() for _ in range(MAX_ENDS + 1)]
    for job in jobs:
        await world.cancel(job)

    first = await hear(world)
    assert (first.ended, first.next_in) == (tuple(ids_of(jobs[:MAX_ENDS])), 0.0)
    second = await hear(world)
    assert second.ended == (jobs[-1].id,)
    assert second.next_in > 0


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled])
async def test_ends_settled(world: World, settlement: SettlementOf) -> None:
    """The worker that settled a job knows of that job's end, and of no other."""
    await a_subscriber(world)
    assert await world.settle(settlement(await world.running()), settlement(await world.running(key="k"))) == [Settled.OK] * 2

    assert await heard(world) == []


async def test_ends_unheard(world: World) -> None:
    """Before a session subscribes, and after the last one is gone, nothing is recorded."""
    before, after = await world.add(), await world.add()
    await world.a_session()
    await world.cancel(before)
    subscriber = await a_subscriber(world)
    await world.beat(subscriber, leaving=True)
    await world.cancel(after)

    await a_subscriber(world)
    assert await heard(world) == []


async def test_ends_unheard__by_upkeep_that_does_not_ask(world: World) -> None:
    """Another worker's upkeep leaves them where they are, and does not come earlier because of them."""
    subscriber = await a_subscriber(world)
    job = await world.add()
    await world.cancel(job)

    upkept = await world.upkeep()
    assert upkept.ended == ()
    assert upkept.next_in > 0

    await world.beat(subscriber)
    assert await heard(world) == [job.id]


async def test_ends_bounded(world: World) -> None:
    """The oldest are dropped, and their number is reported once."""
    world = world.under(max_ends=3)
    await a_subscriber(world)
    jobs = [await world.add() for _ in range(5)]
    for job in jobs[:4]:
        await world.cancel(job)
    await world.cancel(jobs[4])

    upkept = await hear(world)
    assert (upkept.ended, upkept.ends_dropped) == (tuple(ids_of(jobs[2:])), 2)
    assert (await hear(world)).ends_dropped == 0


async def test_ends_told(world: World) -> None:
    """A worker that waits for its next upkeep is woken, and learns from its heartbeat that there is something to do."""
    subscriber, other = await a_subscriber(world), await world.a_session(ttl=LONG)
    with world.broker.listen([topics.DUE]) as waiter:
        waiting = asyncio.create_task(waiter.wait(world.harness.wakes_within))
        await asyncio.sleep(0)
        while not waiting.done():  # until the server has registered the waiter
            await heard(world)
            await world.cancel(await world.add())
            await asyncio.sleep(0.01)
        assert waiting.result()
    assert (await world.work_hint(subscriber)).due_in == 0.0
    assert (await world.work_hint(other)).due_in > 0.0

    await hear(world)
    assert (await world.work_hint(subscriber)).due_in > 0.0


@pytest.mark.parametrize("is_heard", [True, False])
async def test_ends_purged(world: World, is_heard: bool) -> None:
    """A worker that is notified of a purged job can read it for a minute. Without such a session, a purge leaves nothing to read."""
    if is_heard:
        await a_subscriber(world)
    waiting, ended = await world.add(), await world.running()
    await world.settle(failed(ended))
    await world.broker.admin.purge(View())

    record = await world.read(waiting)
    assert (record and (record.status, record.reason)) == ((Status.CANCELLED, "purged") if is_heard else None)
    assert await world.read(ended) is None
    await world.pass_time(PURGED_TTL)
    assert await world.read(waiting) is None
