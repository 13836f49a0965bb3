"""Sessions that are dead, and sessions that an outage of the store keeps from beating: the jobs of the latter have not crashed."""

from __future__ import annotations

from typing import Final

import pytest

from taskflow.model.errors import SessionLost
from taskflow.model.record import Status
from taskflow.model.schedule import Definition
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settled
from tests.support.harnesses import Capability
from tests.support.verdicts import succeeded
from tests.support.world import EVERYTHING, World

DEATHS: Final = ("reaped", "dying", "departed", "said to have died")


async def lost(world: World, death: str) -> Session:
    """Return a session that had a lease and is dead, or one that never lived."""
    session = world.an_unregistered_session() if death == "unknown" else await world.a_session()
    if death == "unknown":
        return session
    await world.running(session)
    if death == "departed":
        await world.beat(session, leaving=True)
    elif death == "said to have died":
        await world.die(session)
    else:
        await world.lapse(session)
        await world.upkeep(limit=0 if death == "dying" else EVERYTHING)
    return session


@pytest.mark.parametrize("death", DEATHS)
async def test_register_dead(world: World, death: str) -> None:
    """Registering does not revive a session. The next one of the same name is another session."""
    session = await lost(world, death)
    with pytest.raises(SessionLost):
        await world.broker.register(session)
    await world.add()
    assert await world.claim(await world.a_session(session.name))


@pytest.mark.parametrize("death", [*DEATHS, "unknown"])
async def test_claim_session(world: World, death: str) -> None:
    """It gets nothing, however long it slept before its request, and whether or not its leases are released yet."""
    session, envelope = await lost(world, death), await world.add()
    with pytest.raises(SessionLost):
        await world.claim(session)
    assert await world.status(envelope) is Status.READY


@pytest.mark.parametrize("death", [*DEATHS, "unknown"])
async def test_beat_dead(world: World, death: str) -> None:
    """A beat that was long under way does not revive it, and its death is not reported twice."""
    session = await lost(world, death)
    before = [queue.counts for queue in await world.broker.admin.queues()]
    for beat in (Beat(session=session.id, seen=1), Beat.of_death(session.id, "exit code 77")):
        if death != "dying" or not beat.died_of:  # the cause of a session with leases may become known
            with pytest.raises(SessionLost):
                await world.broker.beat(beat)
    assert [queue.counts for queue in await world.broker.admin.queues()] == before


@pytest.mark.parametrize("death", [*DEATHS, "unknown"])
async def test_schedule_session(world: World, death: str) -> None:
    """A dead session declares no schedule."""
    session = await lost(world, death)
    with pytest.raises(SessionLost):
        await world.broker.define([Definition("nightly", bytes(16), b"body")], session.id)
    assert await world.broker.admin.schedules() == []


async def test_outage__everybody_gets_one_more_ttl(world: World) -> None:
    """After a silence of all sessions, none is reaped until one more ttl has passed: each has time to come back with its runs. One more
    ttl, not one each time: a fleet that is gone for good is reaped by the next fleet's first worker."""
    sessions = [await world.a_session(f"w{number}") for number in range(3)]
    leases = [await world.running(session) for session in sessions]
    world.clock.advance(3_600.0)
    for _ in range(2):
        assert (await world.upkeep()).reaped == 0
        world.clock.advance(9.5)
    for session, lease in zip(sessions[:2], leases[:2], strict=True):
        assert (await world.beat(session, lease)).lost == ()
        assert await world.settle(succeeded(lease)) == [Settled.OK]
    world.clock.advance(2.0)

    assert (await world.upkeep()).reaped == 1
    assert await world.status(leases[2]) is Status.READY


async def test_outage__the_first_to_come_back_dooms_nobody(world: World) -> None:
    """A session that beats again at once does not make the others look dead."""
    quick, slow = await world.a_session("quick"), await world.a_session("slow")
    lease = await world.running(slow)
    world.clock.advance(60.0)
    await world.beat(quick)

    assert (await world.upkeep()).reaped == 0
    world.clock.advance(10.0)
    await world.beat(quick)
    await world.beat(slow, lease)

    assert await world.settle(succeeded(lease)) == [Settled.OK]


async def test_outage__that_begins_between_two_heartbeats(world: World) -> None:
    """A session that sent its last heartbeat a little before the others lapses in the silence of all. It has not crashed either."""
    early, late = await world.a_session("early"), await world.a_session("late")
    lease = await world.running(early)
    world.clock.advance(7.0)
    await world.beat(late)
    world.clock.advance(14.0)
    await world.beat(late)

    assert (await world.upkeep()).reaped == 0
    world.clock.advance(19.0)
    await world.beat(late)
    assert (await world.beat(early, lease)).lost == ()


async def test_outage__that_ends_with_the_heartbeat_of_a_longer_ttl(world: World) -> None:
    """A silence that is short for the first to come back, or for a new worker, may be long for a session with a shorter ttl."""
    for comes_back_first in ("patient", "newcomer"):
        hasty, patient = await world.a_session("hasty", ttl=6.0), await world.a_session("patient", ttl=60.0)
        lease = await world.running(hasty)
        world.clock.advance(10.0)
        if comes_back_first == "patient":
            await world.beat(patient)
        else:
            await world.a_session("newcomer", ttl=60.0)

        assert (await world.upkeep()).reaped == 0
        assert (await world.beat(hasty, lease)).lost == ()
        assert await world.settle(succeeded(lease)) == [Settled.OK]


async def test_outage__spares_none_that_lapses_after_it(world: World) -> None:
    """A session that had time to come back, and did not, has crashed, as its ttl says."""
    session = await world.a_session()
    lease = await world.running(session)
    world.clock.advance(14.0)
    newcomer = await world.a_session("newcomer")
    world.clock.advance(5.0)
    await world.beat(newcomer)
    assert (await world.upkeep()).reaped == 0
    world.clock.advance(2.0)

    assert (await world.upkeep()).reaped == 1
    assert (await world.record(lease)).crashes == 1


async def test_outage__who_does_not_come_back_has_not_crashed(world: World) -> None:
    """The leases of a session that never came back count as handed back: the outage may have ended its worker, and the job did not."""
    session = await world.a_session()
    lease = await world.running(session)
    world.clock.advance(60.0)
    await world.upkeep()

    upkept = await world.reap(session)

    assert (upkept.reaped, upkept.released) == (1, 1)
    record = await world.record(lease)
    assert (record.status, record.crashes, record.hand_backs, record.errors) == (Status.READY, 0, 1, ())


async def test_outage__many_in_a_row_fail_no_job(world: World) -> None:
    """Twelve outages longer than the ttl during one job: it waits longer each time, and is not FAILED."""
    session = await world.a_session()
    lease = await world.running(session)
    for _ in range(12):
        world.clock.advance(60.0)
        await world.upkeep()
        await world.reap(session)
        record = await world.record(lease)
        assert record.status in (Status.READY, Status.SCHEDULED)
        await world.pass_time(300.0)
        session = await world.a_session()
        [lease] = await world.claim(session)

    assert (lease.hand_backs, lease.crashes) == (12, 0)


async def test_outage__ends_with_a_beat(world: World) -> None:
    """A session that has come back is lost like any other the next time, and its run has crashed."""
    session = await world.a_session()
    lease = await world.running(session)
    world.clock.advance(60.0)
    await world.beat(session, lease)

    await world.reap(session)

    record = await world.record(lease)
    assert (record.crashes, record.hand_backs) == (1, 0)


async def test_outage__of_a_clock_that_was_set_back_spares_nobody(world: World) -> None:
    """An outage that seems to be in the future is over. Otherwise it would keep the jobs of dead workers until then."""
    early = await world.a_session("early")
    for _ in range(2):
        world.clock.advance(60.0)
        await world.beat(early)
    world.clock.reboot()  # sets a server's clock back
    session, other = await world.a_session(), await world.a_session("other")
    lease = await world.running(session)
    for _ in range(2):
        world.clock.advance(10.5)
        await world.beat(other)

    await world.upkeep()

    assert (await world.record(lease)).crashes == 1


async def test_outage__the_machine_has_booted_again(world: World) -> None:
    """No session outlives the boot of its machine: older ones are dead at once, and their jobs have not crashed."""
    world.needs(Capability.BOOT)
    session = await world.a_session()
    lease = await world.running(session)
    world.clock.reboot()
    newcomer = await world.a_session()

    upkept = await world.upkeep()

    assert (upkept.reaped, upkept.released) == (1, 1)
    record = await world.record(lease)
    assert (record.status, record.crashes, record.hand_backs) == (Status.READY, 0, 1)
    assert [record.session for record in await world.broker.admin.workers()] == [newcomer]


async def test_outage__after_some_had_lapsed(world: World) -> None:
    """Each living session gets one more ttl, even one that had lapsed before and was not reaped: by [beat_late] it lived on."""
    session, other = await world.a_session(), await world.a_session("other")
    lease = await world.running(session)
    await world.lapse(session, beside=[other])
    world.clock.advance(60.0)

    assert (await world.upkeep()).reaped == 0
    assert (await world.beat(session, lease)).lost == ()


async def test_outage__gives_the_dead_no_time(world: World) -> None:
    """A session that died before shows the silence since its last heartbeat, while it still has leases."""
    session = await world.a_session()
    await world.running(session)
    await world.lapse(session)
    await world.upkeep(limit=0)
    world.clock.advance(60.0)

    [dying] = [record for record in await world.broker.admin.workers() if record.is_dying]

    assert (dying.session, dying.seconds_since_beat) == (session, 84.0)


async def test_outage__heartbeats_from_before_a_boot_hide_none(world: World) -> None:
    """A steady clock starts again with each boot. A dead session's last heartbeat does not belong to the next boot, though the clock
    reaches its time again."""
    world.needs(Capability.BOOT)
    world.clock.reboot()
    old = await world.a_session("old")
    world.clock.advance(30.0)
    await world.beat(old)
    await world.beat(old, leaving=True)
    world.clock.reboot()
    session = await world.a_session()
    lease = await world.running(session)
    world.clock.advance(45.0)

    assert (await world.upkeep()).reaped == 0
    assert (await world.beat(session, lease)).lost == ()


async def test_outage__a_boot_after_a_crash(world: World) -> None:
    """The session's state at its death decides: leases of a dead one are crashes, though they are released after the next boot."""
    world.needs(Capability.BOOT)
    session = await world.a_session()
    lease = await world.running(session)
    await world.lapse(session)
    await world.upkeep(limit=0)
    world.clock.reboot()
    await world.a_session()

    await world.upkeep()

    record = await world.record(lease)
    assert (record.status, record.crashes, record.hand_backs) == (Status.READY, 1, 0)
