"""enqueue: which jobs are added, which are not, and in which order they are claimed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Envelope
from taskflow.model.errors import StoreFull
from taskflow.model.record import Status
from tests.support.verdicts import failed, succeeded
from tests.support.world import World, ids_of

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("fields", "status", "microseconds"),
    [
        ({}, Status.READY, 0),
        ({"after": 90.5}, Status.SCHEDULED, 90_500_000),
        ({"at": None, "after": 5.0}, Status.SCHEDULED, 3_600_000_001),
        ({"awaits": 2}, Status.HELD, 0),
    ],
)
async def test_enqueue_adds(world: World, fields: dict[str, Any], status: Status, microseconds: int) -> None:
    """A job is READY, SCHEDULED (by the store's time, to the microsecond) or HELD. An instant takes precedence over a wait."""
    if "at" in fields:
        fields = fields | {"at": world.clock.wall() + microseconds}
    envelope = world.an_envelope(**fields)

    assert await world.enqueue(envelope) == [Added(envelope.id)]

    record = await world.record(envelope)
    assert (record.status, record.created_at) == (status, instant_of(world.clock.wall()))
    assert record.due_at == instant_of(world.clock.wall() + microseconds)


async def test_enqueue_adds__what_it_was_given(world: World) -> None:
    """The record and the lease show what was sent."""
    envelope = world.an_envelope(
        job="mail.send",
        queue="mail",
        payload=bytes(range(256)),
        priority=-100,
        max_attempts=3,
        timeout=1.5,
        keep_result=7.0,
        expires=60.0,
        headers={"tenant": "blå", "": "empty"},
    )
    await world.enqueue(envelope)

    record = await world.record(envelope)
    assert (record.id, record.job, record.queue, record.priority, record.max_attempts, record.payload, record.headers) == (
        envelope.id,
        "mail.send",
        "mail",
        -100,
        3,
        bytes(range(256)),
        {"tenant": "blå", "": "empty"},
    )
    assert record.expires_at == record.created_at + timedelta(seconds=60)
    [lease] = await world.claim(await world.a_session())
    assert _as_leased(lease.envelope) == _as_leased(envelope)


def _as_leased(envelope: Envelope) -> tuple[object, ...]:
    """Return what a worker reads of an envelope."""
    return (
        envelope.id, envelope.job, envelope.payload, envelope.queue, envelope.priority, envelope.key, envelope.max_attempts,
        envelope.timeout, envelope.retry, envelope.keep_result, envelope.headers,
    )  # fmt: skip


async def _adds_nothing(world: World, envelope: Envelope) -> None:
    before = await world.read(envelope)
    assert await world.enqueue(envelope) == [Refused(envelope.id, envelope.id, "id")]
    assert await world.read(envelope) == before


async def test_enqueue_repeat__waiting(world: World) -> None:
    """A waiting job's id adds nothing, READY, SCHEDULED or HELD. The second of two equal ids in a batch does not affect its neighbours."""
    for fields in ({}, {"after": 60.0}, {"awaits": 1}):
        await _adds_nothing(world, await world.add(**fields))
    assert len(await world.claim(await world.a_session())) == 1

    envelope, neighbour = world.an_envelope(), world.an_envelope()
    answers = await world.enqueue(envelope, envelope, neighbour)
    assert answers == [Added(envelope.id), Refused(envelope.id, envelope.id, "id"), Added(neighbour.id)]


async def test_enqueue_repeat__ended(world: World) -> None:
    """An ended job's id adds nothing: the job does not run again."""
    session = await world.a_session()
    for settlement in (succeeded, failed):
        lease = await world.running(session)
        await world.settle(settlement(lease))
        await _adds_nothing(world, lease.envelope)

    assert await world.claim(session) == []


LARGE = bytes(100_000)


async def test_enqueue_clash__another_job_has_the_id(world: World) -> None:
    """The id of a job with another name, queue, key or payload is no resend, whatever its sender assumes."""
    known = await world.add(payload=LARGE, key="k", key_text="k")
    mine: dict[str, Any] = {"id": known.id, "payload": LARGE, "key": "k", "key_text": "k"}
    others: list[dict[str, Any]] = [{"job": "other"}, {"queue": "other"}, {"key": "other", "key_text": "other"}]
    others += [{"payload": b"x"}, {"payload": LARGE[:-1] + b"x"}]

    assert await world.enqueue(world.an_envelope(**mine), *(world.an_envelope(**mine | other) for other in others)) == [
        Refused(known.id, known.id, "id"),
        *[Refused(known.id, known.id, "clash")] * len(others),
    ]
    assert (await world.record(known)).payload == LARGE


async def test_enqueue_clash__ended(world: World) -> None:
    """The name of a success is compared, with or without its payload; of a failure the payload is compared too."""
    session = await world.a_session()
    for settlement, name, payload in ((succeeded, "other", b"first"), (failed, "work", b"second")):
        lease = await world.running(session, payload=b"first")
        await world.settle(settlement(lease, arguments=b"others"))
        sent: dict[str, Any] = {"id": lease.envelope.id, "queue": lease.envelope.queue, "payload": b"first"}
        answers = await world.enqueue(world.an_envelope(**sent), world.an_envelope(**sent | {"job": name, "payload": payload}))
        assert [answer.because for answer in answers if isinstance(answer, Refused)] == ["id", "clash"]


async def _claimed_order(world: World) -> list[bytes]:
    """Claim one at a time, so that the store's order shows and not the order of one answer."""
    session, order = await world.a_session(), list[bytes]()
    while leases := await world.claim(session, ["default"], limit=1):
        order += ids_of(leases)
    return order


async def test_enqueue_order__arrival(world: World) -> None:
    """With the same priority and instant, the first job to arrive is claimed first, whatever the ids are. A higher priority goes first."""
    envelopes = [world.an_envelope(id=world.an_id()) for _ in range(20)]
    envelopes.sort(key=lambda envelope: envelope.id, reverse=True)
    await world.enqueue(*envelopes[:10])
    await world.enqueue(*envelopes[10:])
    low, high = await world.add(priority=-100), await world.add(priority=1)

    assert await _claimed_order(world) == ids_of([high, *envelopes, low])


async def test_enqueue_order__ready_time(world: World) -> None:
    """The job that became ready first is claimed first: a scheduled one counts by its due time, whenever it was sent or upkeep ran."""
    late = await world.add(after=10.0)
    early = await world.add(after=5.0)
    world.clock.advance(7.0)
    between = await world.add()
    world.clock.advance(7.0)
    last = await world.add()
    await world.upkeep()

    assert await _claimed_order(world) == ids_of([early, between, late, last])


async def test_enqueue_past(world: World) -> None:
    """A job for a past instant, or for the current one, is READY, and has the place of a job sent now."""
    before = await world.add()
    world.clock.advance(1.0)
    past = await world.add(at=world.clock.wall() - 3_600 * SECOND)
    now = await world.add(at=world.clock.wall())

    for envelope in (past, now):
        record = await world.record(envelope)
        assert record.status is Status.READY
        assert record.due_at == instant_of(world.clock.wall())
    assert await _claimed_order(world) == ids_of([before, past, now])


ROOM = 40


async def _full(world: World) -> tuple[World, list[Envelope]]:
    """Return a store that refuses one more, time and again (what it needs for itself varies), and the jobs that it holds."""
    limited, held, refusals = world.limited(ROOM), list[Envelope](), 0
    big = bytes(world.harness.much)
    while len(held) < 10 * ROOM:
        envelope = limited.an_envelope(payload=big, key=f"k{len(held)}")
        try:
            await limited.enqueue(envelope)
        except StoreFull:
            refusals += 1
            if refusals >= 30:
                return limited, held
        else:
            held.append(envelope)
            refusals = 0
    raise AssertionError("the store is never full")


async def test_enqueue_full(world: World) -> None:
    """A batch is refused as a whole, with a named error. A client that resends what filled the store learns that it is there. Follow-ups
    are added: refusing them would undo what the run has done."""
    limited, held = await _full(world)
    batch = [limited.an_envelope(payload=bytes(world.harness.much)) for _ in range(3)]
    with pytest.raises(StoreFull):
        await limited.enqueue(*batch)
    assert await limited.broker.read(ids_of(batch)) == [None] * 3
    assert await limited.enqueue(held[-1]) == [Refused(held[-1].id, held[-1].id, "id")]

    [lease] = await limited.claim(await limited.a_session(), limit=1)
    follow_up = limited.an_envelope()
    await limited.settle(succeeded(lease, follow_ups=(follow_up,)))

    assert await limited.status(follow_up) is Status.READY


async def test_enqueue_full__other_verbs_go_on(world: World) -> None:
    """The jobs queued in a full store run, and then it has room again."""
    limited, held = await _full(world)
    session = await limited.a_session()

    leases = await limited.claim(session, limit=10)
    await limited.beat(session, *leases)
    answers = await limited.settle(*(succeeded(lease) for lease in leases))
    await limited.cancel(held[-1])
    await limited.pass_time(400.0)

    assert {str(answer) for answer in answers} == {"Settled.OK"}
    assert await limited.status(held[-1]) is not Status.READY
    assert isinstance(await _added_in_the_end(limited), Added)


async def _added_in_the_end(limited: World) -> object:
    """Operations free room, but not each of them does: a server tidies up after some dozens of calls."""
    for _ in range(200):
        try:
            [answer] = await limited.enqueue(limited.an_envelope())
        except StoreFull:
            await limited.upkeep()
        else:
            return answer
    return None
