"""The admin interface, continued: failed jobs by their cause."""

from __future__ import annotations

from typing import Any

from taskflow.broker.admin import FailureGroupRecord, Redone, View
from taskflow.model.clock import instant_of
from taskflow.model.fingerprint import UNKNOWN, pack_cause, poison_fingerprint
from taskflow.model.session import Session
from tests.support.verdicts import cancelled, discarded, failed, retried, succeeded
from tests.support.world import World, id_of

ONE, OTHER = b"cause-01", b"cause-02"
LONG = 1_000_000.0


async def fail(world: World, session: Session, cause: bytes | None = ONE, **fields: Any) -> bytes:
    """Let a job fail from this cause, a second after the one before, and return its id."""
    world.clock.advance(1.0)
    lease = await world.running(session, **{"queue": "default", "priority": 1, **fields})
    await world.settle(failed(lease, cause=cause))
    return lease.envelope.id


async def groups(world: World, **of: Any) -> list[FailureGroupRecord]:
    return await world.broker.admin.failure_groups(**of)


async def counts(world: World) -> dict[bytes, int]:
    return {group.fingerprint: group.count for group in await groups(world)}


async def test_admin_failures(world: World) -> None:
    """The largest group comes first, with the counts of each job and deploy, its first and last time, and the last job's id."""
    session, begin, last = await world.a_session(ttl=LONG), world.clock.wall(), b""
    for deploy, job in (("d1", "send"), ("d1", "save"), ("d2", "send"), ("", "send")):
        last = await fail(world, session, pack_cause(ONE, deploy), job=job)
    await fail(world, session, pack_cause(OTHER, "d2 \N{ROCKET}"), job="send", queue="mail")

    one, other = await groups(world)
    first, end, later = (instant_of(begin + seconds * 1_000_000) for seconds in (1, 4, 5))
    assert one == FailureGroupRecord(
        fingerprint=ONE, count=4, first=first, last=end, jobs={"send": 3, "save": 1}, deploys={"d1": 2, "d2": 1}, sample=last
    )
    assert (other.fingerprint, other.count, other.first, other.last) == (OTHER, 1, later, later)
    assert (other.jobs, other.deploys) == ({"send": 1}, {"d2 \N{ROCKET}": 1})
    record = await world.read(last)
    assert record is not None
    assert (record.fingerprint, record.deploy) == (ONE, "")


async def test_admin_failures__of_a_queue_or_a_job(world: World) -> None:
    """Only matching jobs are counted, and only the largest groups are returned if there are more."""
    session = await world.a_session(ttl=LONG)
    first, last = await fail(world, session, queue="mail"), b""
    for job in ("send", "send", "save"):
        await fail(world, session, job=job)
    for _ in range(2):
        last = await fail(world, session, OTHER, job="save", queue="mail")

    assert [(group.fingerprint, group.count) for group in await groups(world, queue="mail")] == [(OTHER, 2), (ONE, 1)]
    [of_queue] = [group for group in await groups(world, queue="mail") if group.fingerprint == ONE]
    assert (of_queue.first, of_queue.sample) == (of_queue.last, first)
    assert [(group.fingerprint, group.count, group.sample) for group in await groups(world, queue="mail", job="save")] == [(OTHER, 2, last)]
    assert [(group.fingerprint, group.jobs) for group in await groups(world, job="send")] == [(ONE, {"send": 2})]
    assert await groups(world, queue="nobody's") == await groups(world, job="nobody's") == await groups(world, limit=0) == []
    assert [group.count for group in await groups(world, limit=1)] == [4]


async def test_admin_failures__only_failed_jobs(world: World) -> None:
    """Jobs that ended otherwise, wait or run belong to no group. A job that discarded itself has failed. One without a cause is unknown."""
    session = await world.a_session(ttl=LONG)
    for verdict in (succeeded, cancelled, retried):
        await world.settle(verdict(await world.running(session), cause=ONE))
    await world.running(session)
    await world.cancel(await world.add())
    assert await groups(world) == []
    await world.settle(discarded(await world.running(session), cause=OTHER), failed(await world.running(session), cause=None))

    assert await counts(world) == {OTHER: 1, UNKNOWN: 1}


async def test_admin_failures_exact(world: World) -> None:
    """A job leaves its group when it is retried, purged, or no longer kept. It can fail again from another cause."""
    world = world.under(keep_failed=100.0, repeat_for=10.0)
    session = await world.a_session(ttl=LONG)
    again, purged, dropped, *_ = [await fail(world, session, job="odd" if number == 1 else "work") for number in range(6)]

    assert await world.broker.admin.retry([again]) == [Redone.OK]
    assert await counts(world) == {ONE: 5}
    await world.broker.admin.drop([dropped])
    assert await counts(world) == {ONE: 4}
    assert await world.broker.admin.purge(View(job="odd")) == 1
    assert await counts(world) == {ONE: 3}
    [lease] = await world.claim(session)
    record = await world.read(lease)
    assert record is not None
    assert (lease.envelope.id, record.cause) == (again, None)
    world.clock.advance(10.0)
    await world.settle(failed(lease, cause=OTHER))
    assert await counts(world) == {ONE: 3, OTHER: 1}
    await world.pass_time(95.0)
    assert await counts(world) == {OTHER: 1}
    await world.pass_time(20.0)
    assert await groups(world) == []
    assert await world.read(purged) is None


async def test_admin_failures_poison(world: World) -> None:
    """Poison is grouped whether the worker's cause of death was reported or it only fell silent. Poison with a follow-up is settled with
    its cause."""
    world = world.under(max_crashes=0)
    for number, cause in enumerate(("SIGSEGV", "SIGSEGV", "")):
        session = await world.a_session(f"worker-{number}", ttl=5.0, deploy=f"d{number % 2}")
        await world.running(session)
        if cause:
            await world.die(session, cause)
        else:
            await world.reap(session)

    segv, silent = await groups(world)
    assert (segv.fingerprint, segv.count, segv.deploys) == (poison_fingerprint("SIGSEGV"), 2, {"d0": 1, "d1": 1})
    assert (silent.fingerprint, silent.count, silent.deploys) == (poison_fingerprint(), 1, {"d0": 1})


async def test_admin_failures_ids(world: World) -> None:
    """All ids of the group and no others, whatever their deploys, names and queues."""
    session = await world.a_session(ttl=LONG)
    expected = {
        await fail(world, session, pack_cause(ONE, deploy), job=job, queue=queue)
        for deploy, job, queue in (("", "send", "a"), ("d1", "save", "b"), ("\xff" * 100, "send", "a"))
    }
    lease = await world.running(session)
    await world.settle(failed(lease, cause=OTHER))
    await fail(world, session, ONE[:7] + b"0")
    unknown = await fail(world, session, None)

    ids = await world.broker.admin.failed_ids(ONE)
    assert (len(ids), set(ids)) == (3, expected)
    assert await world.broker.admin.failed_ids(OTHER) == [id_of(lease)]
    assert await world.broker.admin.failed_ids(UNKNOWN) == [unknown]
    assert await world.broker.admin.failed_ids(b"nobody's") == []
