"""cancel and read: asking a job to stop, and reading its state."""

from __future__ import annotations

import pytest

from taskflow.model.clock import instant_of
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.support.verdicts import SettlementOf, cancelled, failed, succeeded
from tests.support.world import World


@pytest.mark.parametrize(
    ("fields", "found"),
    [({}, Status.READY), ({"after": 60.0}, Status.SCHEDULED), ({"awaits": 1}, Status.HELD)],
    ids=["ready", "scheduled", "held"],
)
async def test_cancel_waiting(world: World, fields: dict[str, object], found: Status) -> None:
    """A waiting job is CANCELLED at once, and never runs."""
    envelope = await world.add(**fields)

    assert await world.cancel(envelope) is found

    record = await world.record(envelope)
    assert (record.status, record.reason, record.ended_at) == (Status.CANCELLED, "cancelled", instant_of(world.clock.wall()))
    await world.pass_time(60.0)
    assert await world.claim(await world.a_session()) == []


async def test_cancel_waiting__each_by_itself(world: World) -> None:
    """Each job of a batch is answered in its place: its former status, or None for an unknown job."""
    session = await world.a_session()
    running, ended = await world.running(session), await world.running(session)
    await world.settle(succeeded(ended))
    waiting, untouched = await world.add(), await world.add()

    found = await world.broker.cancel([waiting.id, world.an_id(), running.envelope.id, ended.envelope.id, waiting.id])

    assert found == [Status.READY, None, Status.RUNNING, Status.SUCCEEDED, Status.CANCELLED]
    assert await world.status(untouched) is Status.READY


async def test_cancel_running(world: World) -> None:
    """A running job goes on, marked, and its session learns of it with its next beat."""
    session = await world.a_session()
    lease = await world.running(session)

    assert await world.cancel(lease) is Status.RUNNING

    record = await world.record(lease)
    assert (record.status, record.cancel_requested) == (Status.RUNNING, True)
    assert (await world.beat(session, lease)).stopping == (lease.claim,)
    assert await world.settle(cancelled(lease, "as asked")) == [Settled.OK]
    record = await world.record(lease)
    assert (record.status, record.reason) == (Status.CANCELLED, "as asked")


@pytest.mark.parametrize("settlement", [succeeded, failed, cancelled])
async def test_cancel_ended(world: World, settlement: SettlementOf) -> None:
    """An ended job is unchanged, to the last field."""
    lease = await world.running()
    await world.settle(settlement(lease))
    before = await world.record(lease)
    world.clock.advance(1.0)

    assert await world.cancel(lease) is before.status
    assert await world.record(lease) == before


async def test_read_kept__a_success_as_long_as_it_says(world: World) -> None:
    """A success can be read for its own keep, to the microsecond, and not afterwards, with or without upkeep."""
    lease = await world.running(await world.a_session(ttl=1_000.0))
    await world.settle(succeeded(lease, keep_for=10.0))

    await world.pass_time(9.999_999)
    assert await world.status(lease) is Status.SUCCEEDED
    world.clock.advance(0.000_001)
    assert await world.read(lease) is None
    await world.upkeep()
    assert await world.read(lease) is None


async def test_read_kept__failures_and_cancellations_by_the_rules(world: World) -> None:
    """Failed and cancelled jobs can be read as long as the rules say."""
    world = world.under(keep_failed=50.0, keep_cancelled=20.0)
    session = await world.a_session(ttl=1_000.0)
    lease = await world.running(session)
    await world.settle(failed(lease, keep_for=1.0))
    called_off = await world.add()
    await world.cancel(called_off)

    await world.pass_time(19.9)
    assert await world.status(called_off) is Status.CANCELLED
    await world.pass_time(0.1)
    assert await world.read(called_off) is None
    await world.pass_time(29.9)
    assert await world.status(lease) is Status.FAILED
    await world.pass_time(0.1)
    assert await world.read(lease) is None


async def test_read_kept__in_the_order_asked(world: World) -> None:
    """Records come in the order of the ids: None for an unknown id, and twice for an id that is given twice."""
    first, second = await world.add(), await world.add()

    records = await world.broker.read([second.id, world.an_id(), first.id, second.id])

    assert [record and record.id for record in records] == [second.id, None, first.id, second.id]
    assert await world.broker.read([]) == []
