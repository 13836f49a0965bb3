"""The admin interface: what an operator sees, and what the operator can do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from taskflow.broker.admin import QueueInfo, Redone, View
from taskflow.broker.protocol import Refused
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.record import Status
from taskflow.model.session import Beat, SessionRecord
from taskflow.model.verdict import Settled
from tests.support.listing import listed
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, parked, retried, snoozed, succeeded
from tests.support.world import World, id_of, ids_of

LONG = 1_000_000.0


async def queue(world: World, name: str) -> QueueInfo:
    [record] = [record for record in await world.broker.admin.queues() if record.name == name]
    return record


async def test_admin_queues(world: World) -> None:
    """Each queue is listed by name, with the number of its jobs in each status. Zeros are listed too, even when its last job is
    forgotten."""
    session = await world.a_session()
    for settlement in (succeeded, failed, failed, cancelled):
        await world.settle(settlement(await world.running(session, queue="b")))
    await world.running(session, queue="b")
    await world.add(queue="b")
    await world.add(queue="b", after=60.0)
    await world.add(queue="b", awaits=1)
    last = await world.add(queue="a")

    records = await world.broker.admin.queues()

    assert [record.name for record in records] == ["a", "b"]
    assert records[0].counts == {**dict.fromkeys(Status, 0), Status.READY: 1}
    assert records[1].counts == {**dict.fromkeys(Status, 1), Status.FAILED: 2}
    await world.cancel(last)
    for _ in range(3):
        await world.pass_time(1_000.0)
    assert (await queue(world, "a")).counts == dict.fromkeys(Status, 0)


async def test_admin_queues__how_long_the_oldest_has_been_ready(world: World) -> None:
    """Seconds since the longest-waiting ready job became ready, and until the first scheduled job is due; None if there is no such job."""
    await world.add(queue="mail", after=60.0)
    record = await queue(world, "mail")
    assert (record.oldest_ready_for, record.next_due_in) == (None, 60.0)
    await world.add(queue="mail", priority=-1)
    world.clock.advance(2.5)
    await world.add(queue="mail")
    world.clock.advance(1.0)

    record = await queue(world, "mail")
    assert (record.oldest_ready_for, record.next_due_in) == (3.5, 56.5)


async def test_admin_workers(world: World) -> None:
    """The living sessions are listed by name: since when, how long silent, and how many leases."""
    second = await world.a_session("host:2", queues=("mail",), concurrency=7)
    first = await world.a_session("host:1", ttl=33.0)
    registered_at = instant_of(world.clock.wall())
    await world.running(second)
    world.clock.advance(4.0)
    await world.beat(first)
    world.clock.advance(1.5)

    assert await world.broker.admin.workers() == [
        SessionRecord(session=first, registered_at=registered_at, seconds_since_beat=1.5, leases=0, is_dying=False),
        SessionRecord(session=second, registered_at=registered_at, seconds_since_beat=5.5, leases=1, is_dying=False),
    ]


@pytest.mark.parametrize("name", ["host\udcff:1", "host\0:1", "host\N{SKULL}:1"])
async def test_admin_workers__of_any_name(world: World, name: str) -> None:
    """A worker works though its machine's name is not UTF-8. A store that cannot hold the name as it is escapes the odd part."""
    session = await world.a_session(name)
    lease = await world.running(session)

    [record] = [record for record in await world.broker.admin.workers() if record.session.id == session.id]

    assert (record.session.name[:4], record.session.name[-2:]) == ("host", ":1")
    assert (await world.record(lease)).worker == record.session.name


async def redo(world: World, job: Envelope | Lease) -> Redone:
    [redone] = await world.broker.admin.retry([id_of(job)])
    return redone


@pytest.mark.parametrize("settlement", [failed, discarded, cancelled])
async def test_admin_retry(world: World, settlement: SettlementOf) -> None:
    """A failed or cancelled job becomes READY like a new one, with its payload; its errors are kept."""
    session = await world.a_session(ttl=LONG)
    lease = await world.running(session, expires=50.0, max_attempts=2)
    await world.settle(snoozed(lease))
    [lease] = await world.claim(session)
    await world.settle(retried(lease))
    [lease] = await world.claim(session)
    await world.cancel(lease)
    await world.settle(settlement(lease))
    before = await world.record(lease)
    world.clock.advance(100.0)

    assert await redo(world, lease) is Redone.OK

    record = await world.record(lease)
    assert (record.status, record.due_at) == (Status.READY, instant_of(world.clock.wall()))
    assert (record.failures, record.crashes, record.snoozes, record.hand_backs) == (0, 0, 0, 0)
    assert (record.expires_at, record.ended_at, record.reason, record.cancel_requested) == (None, None, None, False)
    assert (record.errors, record.payload, record.created_at) == (before.errors, lease.envelope.payload, before.created_at)
    assert record.errors
    [again] = await world.claim(session)
    assert (again.epoch, again.failures, again.envelope.payload) == (lease.epoch + 1, 0, lease.envelope.payload)
    assert await world.settle(succeeded(again)) == [Settled.OK]


async def test_admin_retry__poison(world: World) -> None:
    """A poisoned job may be retried, and is then no longer poison."""
    world = world.under(max_crashes=0)
    lease = await world.running()
    await world.broker.beat(Beat.of_death(lease.claim.session, "signal SIGSEGV"))

    assert await redo(world, lease) is Redone.OK

    assert await listed(world.broker.admin, View(poison=True)) == []
    [lease] = await world.claim(await world.a_session())
    assert lease.crashes == 0
    await world.settle(failed(lease))
    assert await listed(world.broker.admin, View(poison=True)) == []


async def test_admin_retry__refusals(world: World) -> None:
    """A job that is live, has succeeded, is unknown or is no longer kept is unchanged. Each answer gives its reason, in its place."""
    session = await world.a_session(ttl=LONG)
    waiting, running, done, gone, good = await world.add(), *[await world.running(session) for _ in range(4)]
    await world.settle(succeeded(done), failed(good), succeeded(gone, keep_for=0.0))
    jobs = (waiting.id, running.envelope.id, done.envelope.id, gone.envelope.id, world.an_id(), good.envelope.id)

    redone = await world.broker.admin.retry(jobs)

    assert redone == [Redone.LIVE, Redone.LIVE, Redone.SUCCEEDED, Redone.UNKNOWN, Redone.UNKNOWN, Redone.OK]
    assert [await world.status(job) for job in (waiting, running, done)] == [Status.READY, Status.RUNNING, Status.SUCCEEDED]


@pytest.mark.parametrize("is_running", [False, True])
async def test_admin_retry__its_key_is_taken(world: World, is_running: bool) -> None:
    """A job whose key another live job has remains ended; otherwise it gets the key again. A run that was asked to stop has its key until
    it ends: a retried job would be READY at once, beside it."""
    session = await world.a_session()
    ended = await world.running(session, queue="default", key="k")
    await world.settle(failed(ended))
    holder = await world.add(key="k")
    running = await world.claim(session) if is_running else []
    if is_running:
        await world.cancel(holder)
    assert await redo(world, ended) is Redone.KEY_TAKEN
    assert await world.status(ended) is Status.FAILED

    await world.settle(*map(cancelled, running))
    await world.cancel(holder)

    assert await redo(world, ended) is Redone.OK
    other = world.an_envelope(key="k")
    assert await world.enqueue(other) == [Refused(other.id, ended.envelope.id, "key")]


@pytest.mark.parametrize(
    ("fields", "settlement"),
    [
        ({"after": 60.0}, None),
        ({"after": 60.0, "key": "k", "tags": ("a",), "expires": 90.0}, None),
        ({}, partial(retried, after=60.0)),
        ({"key": "k"}, partial(snoozed, after=60.0)),
        ({}, partial(parked, after=60.0)),
    ],
)
async def test_admin_run_now(world: World, fields: dict[str, Any], settlement: SettlementOf | None) -> None:
    """The job is READY behind those that are ready already, keeps its errors, counters, key and expiry, and can be claimed at once."""
    session = await world.a_session()
    job = await world.add(**fields)
    if settlement is not None:
        [lease] = await world.claim(session)
        await world.settle(settlement(lease))
    other, before = await world.add(), await world.record(job)
    world.clock.advance(1.0)

    assert await world.broker.admin.run_now([job.id]) == [Status.SCHEDULED]

    record = await world.record(job)
    assert (record.status, record.due_at) == (Status.READY, instant_of(world.clock.wall()))
    assert (record.errors, record.failures, record.snoozes, record.expires_at, record.tags, record.key_text) == (
        *(before.errors, before.failures, before.snoozes, before.expires_at, before.tags, before.key_text),
    )
    leases = await world.claim(session)
    assert ids_of(leases) == ids_of([other, job])
    assert [await world.broker.admin.run_now([lease.envelope.id]) for lease in leases] == [[Status.RUNNING]] * 2
    assert await world.settle(*map(succeeded, leases)) == [Settled.OK] * 2


async def test_admin_run_now_leaves(world: World) -> None:
    """Each answer is the status that the job had and still has. One job is named twice, and one is no longer kept."""
    session = await world.a_session()
    joined, member = await world.add(queue="others", awaits=1), await world.add(queue="others", after=60.0)
    running, done, gone = [await world.running(session, key=key) for key in ("k", None, None)]
    behind = world.an_envelope(queue=running.envelope.queue, key="k", after=60.0, on_conflict=OnConflict.REPLACE)
    await world.enqueue(behind)
    await world.settle(succeeded(done), succeeded(gone, keep_for=0.0))
    jobs = (joined, member, member, behind, running, done)

    found = await world.broker.admin.run_now([*ids_of(jobs), gone.envelope.id, world.an_id()])

    ready = [Status.SCHEDULED, Status.READY]
    assert found == [Status.HELD, *ready, Status.HELD, Status.RUNNING, Status.SUCCEEDED, None, None]
    assert [await world.status(job) for job in jobs] == [Status.HELD, Status.READY, Status.READY, *found[3:6]]
    await world.settle(succeeded(running))
    assert await world.status(behind) is Status.SCHEDULED


async def test_admin_drop(world: World) -> None:
    """Ended jobs are gone, with their tags; live ones remain; the statuses are answered in order."""
    session = await world.a_session()
    ended = list[Lease]()
    for settlement in (succeeded, failed, cancelled):
        lease = await world.running(session, key=f"k{len(ended)}", tags=("a",))
        await world.settle(settlement(lease))
        ended.append(lease)
    running = await world.running(session)
    live = [await world.add(tags=("a",)), await world.add(after=60.0), await world.add(awaits=1)]
    asked = [id_of(world.an_envelope()), *map(id_of, ended), id_of(running), *map(id_of, live)]

    answers = await world.broker.admin.drop(asked)

    assert answers == [
        None, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.RUNNING, Status.READY, Status.SCHEDULED, Status.HELD,
    ]  # fmt: skip
    assert [record is None for record in await world.broker.read(asked)] == [True] * 4 + [False] * 4
    assert await world.broker.admin.drop(asked[:4]) == [None] * 4
    assert await world.broker.admin.drop([]) == []
    assert [record.id for record in await listed(world.broker.admin, View(tag="a"))] == [live[0].id]
    assert (await queue(world, "default")).counts[Status.FAILED] == 0
    assert await world.enqueue(ended[1].envelope) == [Refused(ended[1].envelope.id, ended[1].envelope.id, "id")]
