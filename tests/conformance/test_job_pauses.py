"""Pauses of jobs by their names: a job that is claimed meanwhile is parked, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from taskflow.broker import topics
from taskflow.broker.engine import job_pauses
from taskflow.model import wording
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.errors import BrokerRefused
from taskflow.model.record import Status
from taskflow.model.verdict import HandedBack, Settled
from tests.support.verdicts import retried, settlement, succeeded
from tests.support.world import World, id_of


async def park(world: World, leases: Sequence[Lease]) -> None:
    """Do what a worker does with the leases of a paused job."""
    back = HandedBack(counts=False, is_paused=True)
    assert set(await world.settle(*(settlement(lease, back) for lease in leases))) <= {Settled.OK}


async def resume(world: World, job: str = "work") -> None:
    while await world.broker.admin.resume_job(job):
        pass


async def claim_all(world: World) -> list[Lease]:
    """Claim again and again, because some stores bound an answer."""
    session, found = await world.a_session(), list[Lease]()
    while leases := await world.claim(session):
        found += leases
    return found


async def _parked(world: World, number: int = 3) -> list[Envelope]:
    jobs = []
    for _ in range(number):
        jobs.append(await world.add())
        world.clock.advance(1.0)
    await world.broker.admin.pause_job("work")
    await park(world, await world.claim(await world.a_session()))
    return jobs


async def test_job_pause(world: World) -> None:
    """A claimed job is parked and shows why, other jobs run on, and the end of the pause makes all READY in their old order."""
    jobs = await _parked(world)
    other = await world.add(job="other")

    for job in jobs:
        record = await world.record(job)
        assert (record.status, record.waiting_for) == (Status.SCHEDULED, wording.job_paused("work"))
        assert (record.hand_backs, record.failures, record.crashes) == (0, 0, 0)
    await world.pass_time(60.0)
    assert [lease.envelope.id for lease in await world.claim(await world.a_session())] == [other.id]

    later = await world.add()
    await resume(world)
    assert (await world.record(jobs[0])).waiting_for is None
    leases = await world.claim(await world.a_session())
    assert [lease.envelope.id for lease in leases] == [*map(id_of, jobs), later.id]
    assert await world.settle(*map(succeeded, leases)) == [Settled.OK] * 4
    assert await world.broker.admin.paused_jobs() == []


async def test_job_pause__is_told(world: World) -> None:
    """Registrations and heartbeats name the paused jobs, and each change nudges a living session."""
    session = await world.a_session()
    with world.broker.listen([topics.session(session.id)]) as waiter:
        await world.claim(session)
        await waiter.wait(0.5)  # until it has subscribed
        for pause, names in ((world.broker.admin.pause_job, ("work",)), (world.broker.admin.resume_job, ())):
            await pause("work")
            assert await waiter.wait(5.0)
            assert (await world.beat(session)).paused_jobs == names
            assert await world.broker.register(world.an_unregistered_session()) == names


async def test_job_pause__twice(world: World) -> None:
    """A second pause changes nothing, nor does the end of a pause that does not exist."""
    admin = world.broker.admin
    await admin.pause_job("work")
    await admin.pause_job("other")
    await admin.pause_job("work")
    assert await admin.paused_jobs() == ["other", "work"]
    assert not await admin.resume_job("nothing")
    await resume(world)
    assert await admin.paused_jobs() == ["other"]


async def test_job_pause__over_before_it_is_parked(world: World) -> None:
    """A worker may still know a pause that has ended since. The job is READY in its old place, as it was."""
    first, second = await world.add(), await world.add()
    [lease] = await world.claim(await world.a_session(), limit=1)
    await park(world, [lease])
    assert await world.status(first) is Status.READY
    assert [lease.envelope.id for lease in await world.claim(await world.a_session())] == [first.id, second.id]


async def test_job_pause__survives_a_resume_that_is_broken_off(world: World) -> None:
    """Jobs that a resume does not reach are READY after an hour at the latest. While the pause lasts, they are parked again, in their old
    place."""
    first, second, _ = await _parked(world)
    await world.pass_time(3_700.0)
    await park(world, await world.claim(await world.a_session()))
    assert await world.status(first) is Status.SCHEDULED
    await resume(world, "other")
    await world.pass_time(3_700.0)
    await resume(world)
    leases = await world.claim(await world.a_session())
    assert [lease.envelope.id for lease in leases][:2] == [first.id, second.id]


async def test_job_pause__cancel_expiry_and_run_now(world: World) -> None:
    """A parked job can be cancelled, and expires. Made READY by hand, it is parked again when it is claimed, and then resumed."""
    cancelled, pushed = await _parked(world, 2)
    expiring = await world.add(expires=30.0)
    await park(world, await world.claim(await world.a_session()))
    assert await world.cancel(cancelled) is Status.SCHEDULED
    await world.pass_time(31.0)
    assert [await world.status(job) for job in (cancelled, expiring)] == [Status.CANCELLED] * 2
    assert await world.broker.admin.run_now([pushed.id]) == [Status.SCHEDULED]
    await park(world, await world.claim(await world.a_session()))
    await resume(world)
    [lease] = await world.claim(await world.a_session())
    assert lease.envelope.id == pushed.id
    await world.settle(retried(lease, 60.0))
    await resume(world)
    assert await world.status(pushed) is Status.SCHEDULED  # for its retry, which no pause holds back


async def test_job_pause__debounced(world: World) -> None:
    """A call that debounces a parked job moves its due time: neither the pause nor its end starts the job earlier."""
    job = await world.add(key="letter")
    await world.broker.admin.pause_job("work")
    await park(world, await world.claim(await world.a_session()))
    await world.enqueue(world.an_envelope(key="letter", after=30.0, on_conflict=OnConflict.DEBOUNCE))
    await resume(world)
    await world.pass_time(29.0)
    assert await world.status(job) is Status.SCHEDULED
    await world.pass_time(1.0)
    assert await world.status(job) is Status.READY


async def test_job_pause__many_jobs_in_portions(world: World) -> None:
    """However many are parked, each call releases some of them, and all are released in the end."""
    number = 2 * job_pauses.MAX_RELEASED + 1
    await world.enqueue(*(world.an_envelope() for _ in range(number)))
    await world.broker.admin.pause_job("work")
    await park(world, await claim_all(world))
    calls = 1
    while await world.broker.admin.resume_job("work"):
        calls += 1
    assert calls <= 3
    assert len(await claim_all(world)) == number


async def test_job_pause__of_too_many(world: World) -> None:
    """Each heartbeat reads the names, so their number is bounded."""
    for number in range(job_pauses.MAX_PAUSED):
        await world.broker.admin.pause_job(f"job-{number}")
    with pytest.raises(BrokerRefused, match="100 jobs are paused"):
        await world.broker.admin.pause_job("one more")


async def test_job_pause__while_it_is_resumed(world: World) -> None:
    """Pauses, resumes and hand-backs at the same time lose no job."""
    number = 40
    await world.enqueue(*(world.an_envelope() for _ in range(number)))
    admin, session = world.broker.admin, await world.a_session()

    async def work() -> None:
        for _ in range(10):
            await park(world, await world.claim(session, limit=10))

    async def operate() -> None:
        for _ in range(10):
            await admin.pause_job("work")
            await resume(world)

    await asyncio.gather(work(), operate())
    await resume(world)
    assert len(await world.claim(session)) == number
