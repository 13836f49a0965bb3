"""Operations in a caller's transaction, through a plain connection of the database's driver."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskflow.broker import topics
from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.errors import StoreFull, WrongConnection
from taskflow.model.ids import id_text
from taskflow.model.limits import Gate
from taskflow.model.record import Status
from taskflow.model.verdict import Completed, Failed, Retried, Settled, Verdict
from tests.support.callers import Caller, a_caller, unaffected
from tests.support.flows import sent
from tests.support.harnesses import Capability
from tests.support.verdicts import A_RESULT, AN_ERROR, settlement, succeeded
from tests.support.world import World, ids_of

KEEP, REPLACE = OnConflict.KEEP, OnConflict.REPLACE


async def test_cancel_waiting__beside_an_open_transaction(world: World) -> None:
    """A transaction that replaces a waiting job holds up no other operation."""
    world.needs(Capability.ROW_LOCKS)
    standing, other = await world.add(key="k"), await world.add()
    with await a_caller(world) as caller:
        caller.begin()
        caller.enqueue(world.an_envelope(key="k", on_conflict=OnConflict.REPLACE))
        await world.broker.cancel(ids_of([standing, other]))
        caller.roll_back()
    assert [await world.status(job) for job in (standing, other)] == [Status.CANCELLED] * 2


async def admitted(world: World) -> None:
    """Let the store admit what transactions have sent with keys. SQLite has done so in the transactions."""
    await world.upkeep()


async def test_within_commit(world: World) -> None:
    """Until the commit no one else sees the job; after it, the job is like any other."""
    sent = world.an_envelope(queue="mail", headers={"a": "b"}, priority=3)
    with await a_caller(world) as caller:
        caller.begin()
        assert caller.enqueue(sent) == [Added(sent.id)]
        assert await world.read(sent) is None
        caller.commit()

    assert await world.status(sent) is Status.READY
    [lease] = await world.claim(await world.a_session())
    assert (lease.envelope.id, lease.envelope.payload, lease.envelope.headers) == (sent.id, sent.payload, sent.headers)
    assert await world.settle(succeeded(lease)) == [Settled.OK]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, Status.READY),
        ({"expires": 60.0}, Status.READY),
        ({"after": 60.0}, Status.SCHEDULED),
        ({"awaits": 1}, Status.HELD),
        ({"key": "k"}, Status.READY),
        ({"limits": (Gate(b"g" * 16, "limit", "", 2),)}, Status.READY),
        ({"limits": (Gate(b"g" * 16, "limit", "", 2),), "after": 60.0}, Status.SCHEDULED),
        ({"tags": ("a", "b")}, Status.READY),
        ({"tags": ("a",), "key": "k", "after": 60.0}, Status.SCHEDULED),
    ],
)
async def test_within_commit__as_enqueue_does(world: World, fields: dict[str, Any], status: Status) -> None:
    """The record is the same as that of a job that the broker has enqueued."""
    sent, other = world.an_envelope(**fields), world.an_envelope(**{**fields, "queue": "other"})
    with await a_caller(world) as caller, caller.transaction():
        caller.enqueue(sent)
    await world.enqueue(other)
    await admitted(world)

    record, like = await world.record(sent), await world.record(other)
    assert record.status is status
    assert (record.created_at, record.due_at, record.expires_at, record.job) == (like.created_at, like.due_at, like.expires_at, like.job)
    assert {queue.name: queue.counts[status] for queue in await world.broker.admin.queues()} == {"default": 1, "other": 1}
    assert record.tags == like.tags
    assert world.harness.tagged() == {(tag, each.id) for each in (sent, other) for tag in each.tags}


async def test_within_rollback(world: World) -> None:
    """After a rollback no operation finds the job, and another may have its id and key."""
    sent = world.an_envelope(key="k", queue="new", job="never_seen")
    with await a_caller(world) as caller:
        caller.begin()
        assert caller.enqueue(sent) == [Added(sent.id)]
        caller.roll_back()

    assert await world.read(sent) is None
    assert await world.cancel(sent) is None
    assert await world.claim(await world.a_session()) == []
    assert sum(sum(queue.counts.values()) for queue in await world.broker.admin.queues()) == 0
    assert await world.enqueue(sent) == [Added(sent.id)]


async def test_within_savepoint__rolled_back(world: World) -> None:
    """A job of a savepoint that was rolled back was never added, and those around it are there."""
    before, inside, after = world.an_envelope(key="k"), world.an_envelope(key="other"), world.an_envelope(key="other")
    with await a_caller(world) as caller, caller.transaction():
        caller.enqueue(before)
        caller.execute("SAVEPOINT s")
        assert caller.enqueue(inside) == [Added(inside.id)]
        caller.execute("ROLLBACK TO SAVEPOINT s")
        assert caller.enqueue(after) == [Added(after.id)]
    await admitted(world)

    assert await world.read(inside) is None
    assert [lease.envelope.id for lease in await world.claim(await world.a_session())] == [before.id, after.id]


async def test_within_keys__kept(world: World) -> None:
    """A job of the same transaction keeps its key, and so does an earlier one. A replacement ends the former."""
    standing = await world.add(key="there")
    first, second, third = world.an_envelope(key="k"), world.an_envelope(key="k"), world.an_envelope(key="there")
    fourth = world.an_envelope(key="k", on_conflict=OnConflict.REPLACE)
    with await a_caller(world) as caller, caller.transaction():
        assert caller.enqueue(first) == [Added(first.id)]
        assert caller.enqueue(second, third) == [Refused(second.id, first.id, "key"), Refused(third.id, standing.id, "key")]
        assert caller.enqueue(fourth) == [Added(fourth.id, first.id)]
    await admitted(world)

    assert await world.broker.read([second.id, third.id]) == [None, None]
    record = await world.record(first)
    assert (record.status, record.reason) == (Status.CANCELLED, f"replaced by {id_text(fourth.id)}")
    assert await world.status(fourth) is Status.READY


async def test_within_keys__behind_a_run(world: World) -> None:
    """A replacement waits for the run that holds its key."""
    lease = await world.running(queue="default", key="k")
    behind = world.an_envelope(key="k", on_conflict=OnConflict.REPLACE)
    with await a_caller(world) as caller, caller.transaction():
        assert caller.enqueue(behind) == [Added(behind.id)]
    await admitted(world)

    assert await world.status(behind) is Status.HELD
    await world.settle(succeeded(lease))
    assert await world.status(behind) is Status.READY


async def test_within_keys__throttled(world: World) -> None:
    """A job that a transaction adds begins a window at the latest when it is admitted, and gives way to one that is there already."""
    first, second = (world.an_envelope(key="k", throttle=60.0) for _ in range(2))
    with await a_caller(world) as caller:
        with caller.transaction():
            assert caller.enqueue(first) == [Added(first.id)]
        await admitted(world)
        await world.cancel(first)
        with caller.transaction():
            caller.enqueue(second)
    await admitted(world)

    record = await world.read(second)
    assert record is None or (record.status, record.reason) == (Status.CANCELLED, f"key held by {id_text(first.id)}")


async def test_within_keys__repeat(world: World) -> None:
    """A known id adds nothing, whether the job is of this transaction or was there before."""
    known, new = await world.add(), world.an_envelope()
    with await a_caller(world) as caller, caller.transaction():
        assert caller.enqueue(known, new, new) == [
            Refused(known.id, known.id, "id"),
            Added(new.id),
            Refused(new.id, new.id, "id"),
        ]
        assert caller.enqueue(new) == [Refused(new.id, new.id, "id")]
        for other in (world.an_envelope(id=new.id, payload=b"other"), world.an_envelope(id=new.id, job="other")):
            assert caller.enqueue(other) == [Refused(new.id, new.id, "clash")]


# --- refusals ------------------------------------------------------------------------------------------------------


async def test_within_store(world: World) -> None:
    """A connection to another database is detected, and its transaction goes on."""
    with await a_caller(world) as ours, Caller(world.harness.connect_elsewhere(), ours.store) as caller:
        for _ in range(2):
            caller.execute("BEGIN")
            with unaffected(caller), pytest.raises(WrongConnection):
                caller.check()
            caller.roll_back()


async def test_within_open_key(world: World) -> None:
    """No operation waits for a transaction that has sent with a key. Of the jobs that get the key this way, one is admitted."""
    world.needs(Capability.ROW_LOCKS)
    first, second, third = [world.an_envelope(key=key, on_conflict=mode) for key, mode in (("k", REPLACE), ("k", KEEP), ("other", KEEP))]
    fourth = world.an_envelope(key="k")
    with await a_caller(world) as other, await a_caller(world) as caller:
        other.begin()
        other.enqueue(first)
        caller.begin()
        async with asyncio.timeout(2):
            assert await asyncio.to_thread(caller.enqueue, third, second) == [Added(third.id), Added(second.id)]
            assert await world.enqueue(fourth) == [Added(fourth.id)]
        caller.commit()
        other.commit()
    assert [await world.status(job) for job in (first, second, third, fourth)] == [*[Status.HELD] * 3, Status.READY]
    await admitted(world)

    assert [await world.status(job) for job in (first, second, third)] == [Status.READY, Status.CANCELLED, Status.READY]
    assert (await world.record(second)).reason == f"key held by {id_text(first.id)}"
    assert (await world.record(fourth)).reason == f"replaced by {id_text(first.id)}"


async def test_within_full(world: World) -> None:
    """A store without room refuses the whole call, and the transaction goes on with what was added before."""
    world.needs(Capability.TRANSACTIONS)
    limited = world.limited(40)
    first, *batch = [limited.an_envelope(payload=bytes(world.harness.much)) for _ in range(300)]
    with await a_caller(limited) as caller:
        caller.begin()
        assert caller.enqueue(first) == [Added(first.id)]
        with unaffected(caller), pytest.raises(StoreFull):
            caller.enqueue(*batch)
        added = [envelope for envelope in batch if _is_added(caller, envelope)]
        caller.commit()

    assert 5 < len(added) < len(batch)
    refused = [envelope for envelope in batch if envelope not in added]
    assert await limited.broker.read(ids_of(refused)) == [None] * len(refused)
    assert [await limited.status(envelope) for envelope in (first, *added)] == [Status.READY] * (1 + len(added))


def _is_added(caller: Caller, envelope: Envelope) -> bool:
    try:
        caller.enqueue(envelope)
    except StoreFull:
        return False
    return True


@pytest.mark.parametrize(
    ("listened", "fields"),
    [
        ([topics.queue("mail")], {}),
        ([topics.ANY_QUEUE], {}),
        ([topics.queue("mail"), topics.DUE], {"key": "k"}),  # on PostgreSQL upkeep admits the job
        ([topics.queue("mail"), topics.DUE], {"limits": (Gate(b"g" * 16, "limit", "", 1),)}),
        ([topics.DUE], {"after": 60.0}),
    ],
)
async def test_within_nudges(world: World, listened: list[str], fields: dict[str, Any]) -> None:
    """The commit wakes a listener; a transaction that is open or was rolled back does not."""
    with await a_caller(world) as caller, world.broker.listen(listened) as listener:
        assert not await listener.wait(0.1)  # a new listener first reads once by itself
        caller.begin()
        caller.enqueue(world.an_envelope(queue="mail", **fields))
        assert not await listener.wait(0.05)
        caller.roll_back()
        assert not await listener.wait(0.05)
        with caller.transaction():
            caller.enqueue(world.an_envelope(queue="mail", **fields))
        assert await listener.wait(world.harness.wakes_within)


async def test_within_nudges__end(world: World) -> None:
    """The commit that ends a job wakes those who wait for its end."""
    lease = await world.running()
    with await a_caller(world) as caller, world.broker.listen([topics.job(lease.envelope.id)]) as listener:
        assert not await listener.wait(0.1)
        with caller.transaction():
            caller.settle(succeeded(lease))
        assert await listener.wait(world.harness.wakes_within)


# --- settle --------------------------------------------------------------------------------------------------------

AFTERWARDS = (Completed(Retried(AN_ERROR)), Completed(Failed(AN_ERROR)))


@pytest.mark.parametrize("key", [None, "k"])
async def test_complete_commit(world: World, key: str | None) -> None:
    """The job has succeeded, and a later settlement of its worker changes nothing."""
    session = await world.a_session()
    lease = await world.running(session, key=key)
    with await a_caller(world) as caller, caller.transaction():
        assert caller.settle(succeeded(lease, ran_for=2.0, keep_for=50.0)) is Settled.OK
        assert await world.status(lease) is Status.RUNNING

    record = await world.record(lease)
    assert (record.status, record.result, record.payload) == (Status.SUCCEEDED, A_RESULT, None)
    for verdict in (*AFTERWARDS, *AFTERWARDS):
        assert await world.settle(settlement(lease, verdict)) == [Settled.COMMITTED]
    assert await world.record(lease) == record
    assert (await world.beat(session, lease)).lost == (lease.claim,)


async def test_complete_commit__keeps_arguments(world: World) -> None:
    """The arguments are kept as a worker's settlement keeps them. The answer is the same after the job was dropped, as long as its id is
    known."""
    lease = await world.running()
    with await a_caller(world) as caller, caller.transaction():
        caller.settle(succeeded(lease, arguments=lease.envelope.payload, keep_for=1.0))
    record = await world.record(lease)
    assert (record.result, record.payload) == (A_RESULT, lease.envelope.payload)
    await world.pass_time(5.0)
    await world.upkeep()

    assert await world.read(lease) is None
    assert await world.settle(settlement(lease, AFTERWARDS[0])) == [Settled.COMMITTED]


async def test_complete_commit__passes_a_slot_on(world: World) -> None:
    """The first job that waits at a gate gets the slot of the run."""
    limits = (Gate(b"g" * 16, "limit", "", 1),)
    lease = await world.running(limits=limits)
    waiting = await world.add(limits=limits)
    with await a_caller(world) as caller, caller.transaction():
        caller.settle(succeeded(lease))
    await admitted(world)
    assert await world.status(waiting) is Status.READY


async def test_complete_commit__passes_a_slot_on_of_a_dropped_job(world: World) -> None:
    """This also holds if an operator drops the job before the commit's consequences are applied."""
    limits = (Gate(b"g" * 16, "limit", "", 1),)
    lease = await world.running(limits=limits)
    waiting = await world.add(limits=limits)
    with await a_caller(world) as caller, caller.transaction():
        caller.settle(succeeded(lease))
    await world.broker.admin.drop(ids_of([lease]))
    await admitted(world)
    assert await world.status(waiting) is Status.READY


async def test_complete_commit__releases(world: World) -> None:
    """The key is free, a replacement and a join are released, and follow-ups are added."""
    held = await world.add(queue="held", awaits=1)
    lease = await world.running(queue="default", key="k", joins=(held.id,))
    behind = world.an_envelope(key="k", on_conflict=OnConflict.REPLACE)
    await world.enqueue(behind)
    with await a_caller(world) as caller, caller.transaction():
        assert caller.settle(succeeded(lease, follow_ups=(follow_up := world.an_envelope(),))) is Settled.OK
    await world.upkeep()  # on PostgreSQL the consequences follow the commit

    assert [await world.status(job) for job in (held, behind, follow_up)] == [Status.READY] * 3


@pytest.mark.parametrize("keep_for", [0.0, 3_600.0])
async def test_complete_commit__passes_a_result_on(world: World, keep_for: float) -> None:
    """A flow's next job gets the result of one that was settled in a transaction, and that job's own results are dropped."""
    flow = await sent(world, members=1, length=2)
    assert flow.join is not None
    session = await world.a_session()
    [first] = await world.claim(session, ["0"])
    await world.settle(succeeded(first))
    [second] = await world.claim(session, ["1"])
    with await a_caller(world) as caller, caller.transaction():
        caller.settle(succeeded(second, b"\x01r", keep_for=keep_for))
    await world.upkeep()

    assert await world.status(flow.join) is Status.READY
    assert [(await world.broker.notes(job_id)).notes for job_id in ids_of([second, flow.join])] == [(), ((0, b"\0\x01r"),)]


@pytest.mark.parametrize(("verdict", "status"), [(AFTERWARDS[0], Status.READY), (AFTERWARDS[1], Status.FAILED)])
async def test_complete_rollback(world: World, verdict: Verdict, status: Status) -> None:
    """The run still holds its job, and its worker's settlement takes effect, once."""
    session = await world.a_session()
    lease = await world.running(session)
    with await a_caller(world) as caller:
        caller.begin()
        assert caller.settle(succeeded(lease)) is Settled.OK
        caller.roll_back()

    assert (await world.beat(session, lease)).lost == ()
    assert await world.settle(settlement(lease, verdict)) == [Settled.OK]
    assert await world.settle(settlement(lease, verdict)) == [Settled.OK]
    record = await world.record(lease)
    assert (record.status, record.failures, record.result) == (status, 1, None)


async def test_complete_stale(world: World) -> None:
    """A run that was settled, whose lease was taken away, or that is unknown cannot be completed; the transaction goes on."""
    world.needs(Capability.TRANSACTIONS)
    session, lost = await world.a_session(), await world.a_session()
    settled, reaped = await world.running(session), await world.running(lost)
    await world.settle(succeeded(settled))
    await world.reap(lost, beside=[session])
    leased_again = await world.claim(session)
    unknown = settlement(settled, succeeded(settled).verdict)
    before = [await world.record(lease) for lease in (settled, reaped)]
    with await a_caller(world) as caller:
        caller.begin()
        with unaffected(caller):
            assert [caller.settle(succeeded(lease)) for lease in (settled, reaped)] == [Settled.STALE] * 2
            assert caller.settle(type(unknown)(id=world.an_id(), epoch=1, claim=unknown.claim, verdict=unknown.verdict)) is Settled.STALE
        caller.commit()

    assert [await world.record(lease) for lease in (settled, reaped)] == before
    assert await world.settle(*map(succeeded, leased_again)) == [Settled.OK] * len(leased_again)


async def test_complete_open(world: World) -> None:
    """No other operation waits for the transaction: each leaves the lease to a later call."""
    world.needs(Capability.ROW_LOCKS)
    session, leaving = await world.a_session(), await world.a_session()
    lease, left = await world.running(session), await world.running(leaving)
    other = await world.running(session)
    with await a_caller(world) as caller:
        caller.begin()
        assert [caller.settle(succeeded(each)) for each in (lease, left)] == [Settled.OK] * 2
        async with asyncio.timeout(5):
            assert await world.settle(settlement(lease, AFTERWARDS[0]), succeeded(other)) == [Settled.HELD_UP, Settled.OK]
            await world.beat(leaving, leaving=True)
            await world.lapse(session)
            await world.upkeep()
        assert [await world.status(each) for each in (lease, left)] == [Status.RUNNING] * 2
        caller.commit()

    assert [await world.status(each) for each in (lease, left)] == [Status.SUCCEEDED] * 2
    await world.upkeep()
    assert await world.settle(settlement(lease, AFTERWARDS[0])) == [Settled.COMMITTED]


async def test_complete_repeat(world: World) -> None:
    """A second settlement in the same transaction changes nothing."""
    lease = await world.running()
    with await a_caller(world) as caller, caller.transaction():
        assert caller.settle(succeeded(lease)) is Settled.OK
        assert caller.settle(succeeded(lease, b"\x01another", follow_ups=(follow_up := world.an_envelope(),))) is Settled.OK

    assert (await world.record(lease)).result == A_RESULT
    assert await world.read(follow_up) is None


@pytest.mark.parametrize("is_same", [True, False], ids=["the same connection", "another connection"])
async def test_complete_repeat__later(world: World, is_same: bool) -> None:
    """In a second transaction the run learns that the first one has committed."""
    lease = await world.running()
    with await a_caller(world) as caller, await a_caller(world) as another:
        with caller.transaction():
            assert caller.settle(succeeded(lease)) is Settled.OK
        again = caller if is_same else another
        again.begin()
        with unaffected(again):
            assert again.settle(succeeded(lease, b"\x01another")) is Settled.COMMITTED
        again.roll_back()

    assert (await world.record(lease)).result == A_RESULT
