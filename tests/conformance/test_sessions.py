"""Sessions that do not live: whatever they ask, they are told so, and nothing changes."""

from __future__ import annotations

from typing import Final

import pytest

from taskflow.model.errors import SessionLost
from taskflow.model.record import Status
from taskflow.model.schedule import Definition
from taskflow.model.session import Beat, Session
from tests.support.world import EVERYTHING, World

DEATHS: Final = ("reaped", "dying", "departed", "said to have died")


async def lost(world: World, death: str) -> Session:
    """Return a session that had a lease and does not live any more, or one that never lived."""
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
    """A session does not live again by registering. The next one of the same name is another one."""
    session = await lost(world, death)
    with pytest.raises(SessionLost):
        await world.broker.register(session)
    await world.add()
    assert await world.claim(await world.a_session(session.name))


@pytest.mark.parametrize("death", [*DEATHS, "unknown"])
async def test_claim_session(world: World, death: str) -> None:
    """It gets nothing, however long it slept before it asked, and whether or not its leases are released yet."""
    session, envelope = await lost(world, death), await world.add()
    with pytest.raises(SessionLost):
        await world.claim(session)
    assert await world.status(envelope) is Status.READY


@pytest.mark.parametrize("death", [*DEATHS, "unknown"])
async def test_beat_dead(world: World, death: str) -> None:
    """Neither a beat that was long under way revives it, nor is its death told twice."""
    session = await lost(world, death)
    before = [queue.counts for queue in await world.broker.admin.queues()]
    for beat in (Beat(session=session.id, seen=1), Beat.of_death(session.id, "exit code 77")):
        if death != "dying" or not beat.died_of:  # of a session that still has leases the cause may become known
            with pytest.raises(SessionLost):
                await world.broker.beat(beat)
    assert [queue.counts for queue in await world.broker.admin.queues()] == before


@pytest.mark.parametrize("death", [*DEATHS, "unknown"])
async def test_schedule_session(world: World, death: str) -> None:
    """It declares nothing."""
    session = await lost(world, death)
    with pytest.raises(SessionLost):
        await world.broker.define([Definition("nightly", bytes(16), b"body")], session.id)
    assert await world.broker.admin.schedules() == []
