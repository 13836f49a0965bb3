"""settle, continued: late settlements, settlements of marked runs, and what follows when a job is handed back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from taskflow.model.clock import instant_of
from taskflow.model.envelope import Lease
from taskflow.model.record import Status
from taskflow.model.session import Beat
from taskflow.model.verdict import Progress, Settled
from tests.conformance.outcomes import ENDING, MARKED, OUTCOMES, Outcome, check_outcome
from tests.support.verdicts import A_RESULT, SettlementOf, cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import World, ids_of

OK, STALE = Settled.OK, Settled.STALE


@pytest.mark.parametrize("is_dead", [False, True])
async def test_settle_late(world: World, is_dead: bool) -> None:
    """A run that ended counts though its session is past its ttl, or dead, until the lease is released: no other worker has the job yet."""
    session = await world.a_session()
    lease = await world.running(session)
    await world.lapse(session)
    if is_dead:
        await world.upkeep(limit=0)
    assert await world.settle(succeeded(lease)) == [OK]
    await world.upkeep()
    assert await world.status(lease) is Status.SUCCEEDED


async def _crash_and_hand_back(world: World) -> Lease:
    """Return a run of a job that was lost once, and handed back once, since the last outcome."""
    session = await world.a_session()
    lease = await world.running(session, queue="default")
    await world.settle(handed_back(lease))
    await world.claim(session)
    await world.reap(session)
    [lease] = await world.claim(await world.a_session(ttl=1_000.0))
    record = await world.record(lease)
    assert (record.crashes, record.hand_backs) == (1, 1)
    return lease


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled, retried, snoozed, parked, handed_back])
async def test_settle_resets(world: World, settlement: SettlementOf) -> None:
    """A run with an outcome resets the counts of crashes and hand-backs. Parking and handing back are no outcomes."""
    lease = await _crash_and_hand_back(world)
    await world.settle(settlement(lease))
    record = await world.record(lease)
    is_outcome = settlement not in (parked, handed_back)
    assert (record.crashes, record.hand_backs) == ((0, 0) if is_outcome else (1, 1 + (settlement is handed_back)))


@pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if outcome not in ENDING], ids=str)
async def test_settle_marked(world: World, outcome: Outcome) -> None:
    """A run that would wait again ends CANCELLED if its cancellation was requested, with what its verdict counts."""
    await check_outcome(world, outcome, MARKED)


async def test_settle_marked__as_a_ghost(world: World) -> None:
    """A run also ends CANCELLED if its lease goes back because its session does not know it."""
    session = await world.a_session()
    lease = await world.running(session)
    await world.cancel(lease)
    world.clock.advance(world.rules.ghost_after + 1.0)

    assert (await world.beat(session)).ghosts == 1
    assert await world.status(lease) is Status.CANCELLED


@pytest.mark.parametrize("counts", [True, False])
async def test_hand_back_place(world: World, *, counts: bool) -> None:
    """A job that is handed back comes before those that arrived after it, and keeps its due time."""
    session = await world.a_session()
    first = await world.running(session, queue="default")
    due_at = (await world.record(first)).due_at
    world.clock.advance(1.0)
    second = await world.add()

    await world.settle(handed_back(first, counts=counts))

    assert (await world.record(first)).due_at == due_at
    assert ids_of(await world.claim(session)) == ids_of([first, second])


async def test_hand_back_backoff(world: World) -> None:
    """The waits are used in their order, the last one repeats, and the record says how often the job was handed back."""
    world = world.under(hand_back_backoff=(0.0, 5.0, 30.0))
    lease = await world.running(await world.a_session(ttl=1_000.0))
    for number, wait in enumerate((0.0, 5.0, 30.0, 30.0, 30.0), 1):
        assert await world.settle(handed_back(lease)) == [OK]

        record = await world.record(lease)
        assert (record.status, record.hand_backs) == (Status.SCHEDULED if wait else Status.READY, number)
        if wait:
            assert record.due_at == instant_of(world.clock.wall()) + timedelta(seconds=wait)
            assert record.waiting_for == f"a back-off: handed back {number} times without an outcome"
        await world.pass_time(wait)
        [lease] = await world.claim(await world.a_session(ttl=1_000.0))
        assert (lease.hand_backs, (await world.record(lease)).waiting_for) == (number, None)


async def test_hand_back_backoff__by_a_leaving_beat(world: World) -> None:
    """The leases of a session that leaves wait in the same way."""
    world = world.under(hand_back_backoff=(5.0,))
    session = await world.a_session()
    lease = await world.running(session)

    await world.broker.beat(Beat(session=session.id, leaving=True))

    assert await world.status(lease) is Status.SCHEDULED
    await world.pass_time(5.0)
    assert await world.status(lease) is Status.READY


async def test_hand_back_backoff__uncounted_ones_are_free(world: World) -> None:
    """A job that a worker held in reserve and gives back does not count, and does not wait, however often."""
    world = world.under(hand_back_backoff=(0.0, 5.0))
    session = await world.a_session()
    lease = await world.running(session)
    for _ in range(5):
        await world.settle(handed_back(lease, counts=False))
        [lease] = await world.claim(session)

    assert lease.hand_backs == 0


@pytest.mark.parametrize("settlement", [succeeded, failed, discarded, cancelled, retried])
async def test_settle_forgets_payload(world: World, settlement: SettlementOf) -> None:
    """A success keeps its result, and its payload is dropped: it may be large, and secret. A job that may run again, by itself or by an
    operator, keeps its payload and has no result."""
    lease = await world.running()
    await world.settle(settlement(lease))
    record = await world.record(lease)
    assert (record.result, record.payload) == ((A_RESULT, None) if settlement is succeeded else (None, lease.envelope.payload))


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, {}),
        ({"payload": b""}, {"result": b""}),
        ({"payload": bytes(100_000)}, {}),
        ({"payload": bytes(1_000)}, {"result": bytes(100_000)}),
        ({"key": "k", "tags": ("a",)}, {}),
        ({"headers": {"a": "b"}, "expires": 60.0}, {"progress": Progress(0.5, "half")}),
    ],
)
async def test_settle_keeps_arguments(world: World, fields: dict[str, Any], more: dict[str, Any]) -> None:
    """They are the payload of its record, beside the result, until both are dropped. Other jobs of the batch keep none."""
    session = await world.a_session()
    lease, plain = await world.running(session, **fields), await world.running(session)

    kept = succeeded(lease, arguments=lease.envelope.payload, keep_for=50.0, **more)
    assert await world.settle(kept, succeeded(plain), kept) == [Settled.OK] * 3

    record = await world.record(lease)
    assert (record.status, record.result, record.payload) == (Status.SUCCEEDED, more.get("result", A_RESULT), lease.envelope.payload)
    assert (await world.record(plain)).payload is None
    await world.pass_time(51.0)
    assert await world.read(lease) is None
