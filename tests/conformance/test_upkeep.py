"""upkeep: what happens as time passes, in bounded steps that any caller may take in any order."""

from __future__ import annotations

import pytest

from taskflow.broker.protocol import Added, Refused, UpkeepResult
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import Record, Status
from taskflow.model.verdict import Settled
from tests.support.verdicts import SettlementOf, failed, handed_back, succeeded
from tests.support.world import World, ids_of

LONG = 1_000_000.0


async def crash(world: World, job: Envelope) -> Record:
    """Lease the waiting job to a session, lose the session, and return the job's record."""
    session = await world.a_session("lost")
    assert len(await world.claim(session)) == 1
    await world.reap(session)
    return await world.record(job)


async def test_upkeep_due(world: World) -> None:
    """A due job becomes READY, not a microsecond before, with its due time as its place however late upkeep runs."""
    envelope = await world.add(after=10.0)
    due_at = (await world.record(envelope)).due_at

    assert (await world.pass_time(9.999_999)).readied == 0
    assert await world.status(envelope) is Status.SCHEDULED
    assert (await world.pass_time(5.0)).readied == 1

    record = await world.record(envelope)
    assert (record.status, record.due_at) == (Status.READY, due_at)
    assert (await world.upkeep()).readied == 0


async def test_upkeep_due__says_when_to_come_again(world: World) -> None:
    """The caller is told to come no later than the next job is due, and after a while when none is."""
    assert 0.0 < (await world.upkeep()).next_in < 60.0
    await world.add(after=0.25)

    assert 0.0 < (await world.upkeep()).next_in <= 0.25


async def test_upkeep_due__a_large_fleet_comes_seldom(world: World) -> None:
    """Each worker of a large fleet runs upkeep seldom, so that the store gets about one call a second."""
    alone = (await world.upkeep()).next_in
    for number in range(50):
        await world.a_session(f"w{number}")

    assert (await world.upkeep()).next_in >= 10 * alone


async def test_upkeep_due__after_the_clock_was_set_back_meanwhile(world: World) -> None:
    """A job that is scheduled while the clock is behind its own highest reading is found when its time comes. So is a job that is ready
    then."""
    await world.add(after=1.0)
    await world.pass_time(2.0)
    await world.pass_time(2.0)
    await world.running(await world.a_session(ttl=LONG))
    world.clock.skew(-10.0)
    planned, ready = await world.add(after=0.5), await world.add()

    assert (await world.pass_time(30.0)).readied == 1

    assert {lease.envelope.id for lease in await world.claim(await world.a_session("another"), limit=2)} == {planned.id, ready.id}


async def test_upkeep_reaps(world: World) -> None:
    """A session past its ttl is dead, and its jobs run again in other sessions; each has crashed once, and its record says so."""
    session = await world.a_session("host:1")
    leases = [await world.running(session, queue="default") for _ in range(2)]

    upkept = await world.reap(session)

    assert (upkept.reaped, upkept.released) == (1, 2)
    for lease in leases:
        record = await world.record(lease)
        assert (record.status, record.crashes, record.hand_backs) == (Status.READY, 1, 0)
        [error] = record.errors
        assert (error.type, error.at) == ("taskflow.WorkerLost", world.clock.wall())
        assert "host:1" in error.message
    assert sorted(ids_of(await world.claim(await world.a_session()))) == sorted(ids_of(leases))


async def test_upkeep_reaps__says_when_a_session_lapses(world: World) -> None:
    """A caller that comes when told finds the next session that has not beaten, however large the fleet is."""
    for number in range(50):
        await world.a_session(f"w{number}", ttl=20.0)
    await world.a_session("short", ttl=3.0)
    world.clock.advance(2.0)
    await world.let_others_beat()

    next_in = (await world.upkeep()).next_in
    assert 0.0 < next_in <= 1.001
    assert (await world.pass_time(next_in)).reaped == 1

    assert "short" not in {worker.session.name for worker in await world.broker.admin.workers()}


async def test_upkeep_reaps__not_before_its_ttl(world: World) -> None:
    """A session is not reaped as long as its ttl has not passed, to the microsecond."""
    session = await world.a_session(ttl=20.0)
    witness = await world.a_session(ttl=LONG)
    world.clock.advance(10.0)
    await world.beat(witness)
    world.clock.advance(10.0)
    assert (await world.upkeep()).reaped == 0
    await world.beat(session)
    world.clock.advance(10.0)
    await world.beat(witness)
    world.clock.advance(10.000_001)

    assert (await world.upkeep()).reaped == 1


async def test_upkeep_reaps__nobody_by_an_old_reading_of_the_clock(world: World) -> None:
    """A call may wait for a lock after it has read the clock, while others beat. On PostgreSQL the server's clock may also be set back."""
    session = await world.a_session()
    lease = await world.running(session)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world.clock, "_steady", world.clock.steady() - 3_000_000)
        patched.setattr(world.clock, "_wall", world.clock.wall() - 3_000_000)
        assert (await world.upkeep()).reaped == 0

    assert (await world.beat(session, lease)).lost == ()
    assert await world.settle(succeeded(lease)) == [Settled.OK]


async def test_upkeep_reaps__by_the_steady_clock(world: World) -> None:
    """A wall clock set back or forth neither reaps a session nor keeps one alive. A released lease is released once, and its new run is
    left alone."""
    session = await world.a_session()
    lease = await world.running(session)
    for seconds in (86_400.0, -2 * 86_400.0):
        world.clock.skew(seconds)
        assert (await world.upkeep()).reaped == 0
    assert (await world.reap(session)).reaped == 1

    [new] = await world.claim(await world.a_session())
    assert (await world.upkeep()).released == 0
    assert (await world.record(lease)).crashes == 1
    assert await world.settle(succeeded(new)) == [Settled.OK]


async def _much_to_do(world: World) -> int:
    """Prepare three moves for each of upkeep's duties; return how many in all."""
    session = await world.a_session()
    for _ in range(3):
        await world.running(session)
    for _ in range(3):
        await world.settle(succeeded(await world.running(session), keep_for=1.0))
        await world.add(after=1.0)
        await world.add(after=600.0, expires=1.0)
    await world.lapse(session)
    return 12


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_upkeep_bounded(world: World, limit: int) -> None:
    """No call moves more jobs than its limit, over all its duties together; it asks to be called again while there is more."""
    expected, calls = await _much_to_do(world), list[UpkeepResult]()
    while len(calls) <= expected and (not calls or calls[-1].next_in == 0.0):
        calls.append(await world.upkeep(limit))

    assert max(_moved(upkept) for upkept in calls) <= limit
    assert sum(_moved(upkept) for upkept in calls) == expected
    assert _moved(await world.upkeep()) == 0


def _moved(upkept: UpkeepResult) -> int:
    return upkept.readied + upkept.released + upkept.expired + upkept.dropped


async def test_upkeep_bounded__dead_before_its_first_lease_is_released(world: World) -> None:
    """A session whose leases are released in steps is dying between them, and no lease is left behind."""
    session = await world.a_session("host:1")
    leases = [await world.running(session) for _ in range(3)]
    await world.lapse(session)

    for left in (3, 2, 1):
        await world.upkeep(limit=int(left < 3))
        [record] = [record for record in await world.broker.admin.workers() if record.session == session]
        assert (record.is_dying, record.leases) == (True, left)
    await world.upkeep()

    assert [await world.status(lease) for lease in leases] == [Status.READY] * 3


@pytest.mark.parametrize("tags", [(), ("tag",)], ids=["untagged", "tagged"])
async def test_upkeep_bounded__too_many_and_too_old(world: World, tags: tuple[str, ...]) -> None:
    """Jobs beyond their queue's cap and expired records share one limit, also if the engine drops them."""
    world = world.under(kept_per_queue=1)
    session = await world.a_session(ttl=LONG)
    for queue, keep_for in (("busy", LONG), ("busy", LONG), ("busy", LONG), ("quiet", 1.0), ("silent", 1.0)):
        await world.settle(succeeded(await world.running(session, queue=queue, tags=tags), keep_for=keep_for))
    world.clock.advance(1.0)

    assert [(await world.upkeep(1)).dropped for _ in range(5)] == [1, 1, 1, 1, 0]


async def test_upkeep_bounded__many_dead_at_once(world: World) -> None:
    """A call that has reaped as many sessions as it may asks to be called again while there are more."""
    leases = [await world.running(await world.a_session(f"w{number}")) for number in range(20)]
    await world.let_others_beat()
    world.clock.advance(12.0)
    await world.let_others_beat()
    world.clock.advance(12.0)

    calls = 0
    while (await world.upkeep()).next_in == 0.0:
        calls += 1
        assert calls < 10

    assert {await world.status(lease) for lease in leases} == {Status.READY}


async def test_crash_backoff(world: World) -> None:
    """There is no wait after the first crash, then longer ones, the last of which repeats; a crash costs no attempt."""
    world = world.under(max_crashes=10, crash_backoff=(0.0, 5.0, 30.0))
    envelope = await world.add()
    for crashes, wait in enumerate((0.0, 5.0, 30.0, 30.0), 1):
        record = await crash(world, envelope)
        assert (record.crashes, record.failures, record.errors[-1].attempt) == (crashes, 0, 1)
        assert record.status is (Status.SCHEDULED if wait else Status.READY)
        if wait:
            assert record.due_at == instant_of(world.clock.wall() + round(wait * 1_000_000))
        await world.pass_time(wait)
        assert await world.status(envelope) is Status.READY


async def test_crash_poison(world: World) -> None:
    """After one crash more than allowed, the job is FAILED, says that it is poison, and keeps its payload for whoever investigates. A crash
    is no failure, even in the last attempt."""
    world = world.under(max_crashes=2, crash_backoff=(0.0,))
    envelope = await world.add(max_attempts=1)
    for _ in range(2):
        assert (await crash(world, envelope)).status is Status.READY

    record = await crash(world, envelope)

    assert (record.status, record.crashes, len(record.errors)) == (Status.FAILED, 3, 3)
    assert record.reason is not None
    assert record.reason.startswith("poison: ")
    assert (record.payload, record.ended_at) == (envelope.payload, instant_of(world.clock.wall()))
    assert await world.claim(await world.a_session()) == []


async def test_crash_marked(world: World) -> None:
    """A job that was asked to stop does not run again when its worker is lost."""
    session = await world.a_session()
    lease = await world.running(session)
    await world.cancel(lease)

    await world.reap(session)

    record = await world.record(lease)
    assert (record.status, record.reason, record.crashes) == (Status.CANCELLED, "cancelled", 1)


@pytest.mark.parametrize("fields", [{}, {"after": 60.0}, {"awaits": 1}], ids=["ready", "scheduled", "held"])
async def test_upkeep_expires(world: World, fields: dict[str, object]) -> None:
    """A job that waits past its expiry is CANCELLED, "expired", whatever it waits for; not a microsecond before."""
    envelope = await world.add(expires=10.0, **fields)

    assert (await world.pass_time(9.999_999)).expired == 0
    assert (await world.pass_time(0.000_001)).expired == 1

    record = await world.record(envelope)
    assert (record.status, record.reason) == (Status.CANCELLED, "expired")


async def test_upkeep_expires__not_what_runs(world: World) -> None:
    """A run that began in time goes on past the expiry; if it has to wait again, it has expired."""
    lease = await world.running(await world.a_session(ttl=LONG), expires=10.0)
    assert (await world.pass_time(20.0)).expired == 0
    assert await world.status(lease) is Status.RUNNING

    await world.settle(handed_back(lease))
    assert (await world.upkeep()).expired == 1
    assert await world.status(lease) is Status.CANCELLED


async def _ended(world: World, settlement: SettlementOf = succeeded, **more: object) -> Lease:
    lease = await world.running(await world.a_session(ttl=LONG))
    await world.settle(settlement(lease, **more))
    return lease


async def test_upkeep_drops(world: World) -> None:
    """A record past its keep is dropped once, and counted. Its id adds nothing for as long as a client may resend."""
    lease = await _ended(world, keep_for=200.0)
    assert (await world.pass_time(199.0)).dropped == 0
    assert (await world.pass_time(1.0)).dropped == 1
    assert (await world.upkeep()).dropped == 0
    [record] = [record for record in await world.broker.admin.queues() if record.name == lease.envelope.queue]
    assert record.counts[Status.SUCCEEDED] == 0

    lease = await _ended(world, keep_for=0.0)
    await world.pass_time(world.rules.repeat_for - 0.001)
    assert await world.enqueue(lease.envelope) == [Refused(lease.envelope.id, lease.envelope.id, "id")]
    assert await world.read(lease) is None


async def test_upkeep_drops__keeps_up(world: World) -> None:
    """However many ids are to be forgotten at once, upkeep asks to be called again until all are."""
    world = world.under(kept_per_queue=0)
    session = await world.a_session(ttl=LONG)
    envelopes = [world.an_envelope() for _ in range(1_500)]
    for first in range(0, len(envelopes), 500):
        await world.broker.enqueue(envelopes[first : first + 500])
        leases = await world.claim(session, limit=500)
        await world.broker.settle([succeeded(lease, keep_for=LONG) for lease in leases])
    dropped, calls = 0, 0
    while dropped < len(envelopes):
        dropped += (await world.broker.upkeep(500)).dropped
        world.clock.advance(world.rules.repeat_for + 1.0)
    while (await world.broker.upkeep(500)).next_in == 0:
        calls += 1
        assert calls < 10

    answers = await world.broker.enqueue(envelopes[:1_000]) + await world.broker.enqueue(envelopes[1_000:])
    assert {type(answer) for answer in answers} == {Added}


async def test_upkeep_caps(world: World) -> None:
    """Beyond a queue's cap the oldest records are dropped first, and counted. Successes displace no failure, nor failures a success:
    failures still have to be investigated."""
    world = world.under(kept_per_queue=2)
    session = await world.a_session(ttl=LONG)
    leases = list[Lease]()
    for settlement in (succeeded, failed, succeeded, succeeded, failed, succeeded, failed):
        leases.append(await world.running(session, queue="busy"))
        await world.settle(settlement(leases[-1], keep_for=LONG))
        world.clock.advance(1.0)
    other = await world.running(session)
    await world.settle(succeeded(other, keep_for=LONG))

    assert (await world.upkeep()).dropped == 3

    kept = [None, None, None, Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED, Status.FAILED]
    assert [await world.status(lease) for lease in leases] == kept
    assert await world.status(other) is Status.SUCCEEDED
    assert (await world.broker.admin.metrics()).totals["busy"]["dropped over the cap"] == 3
