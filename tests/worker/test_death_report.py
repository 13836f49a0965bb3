"""What becomes of a dead process's jobs when somebody tells the broker of its death."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import pytest

from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerRefused
from taskflow.model.record import Status
from taskflow.model.retry import Pauses
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import RunEnding
from taskflow.worker import death_report
from taskflow.worker.death_report import report_death
from tests.worker.scene import FaultyBroker, waits


async def a_claimer(broker: Broker, name: str = "here:1") -> Session:
    session = Session(id=secrets.token_bytes(16), name=name)
    await broker.register(session)
    return session


async def test_what_the_dead_held_is_at_once_for_others_to_take(broker: Broker) -> None:
    """Its record says of what the worker died."""
    handle = await waits.delay()
    dead, living = await a_claimer(broker), await a_claimer(broker, "here:2")
    [lease] = await broker.claim(dead.id, 1, (), 10)

    assert await report_death(broker, dead.id, "exit code 77")

    [again] = await broker.claim(living.id, 1, (), 10)
    assert again.envelope.id == lease.envelope.id
    info = await handle.info()
    assert info is not None
    [error] = info.errors
    message = "worker here:1 was lost while it had this job (crash 1): exit code 77"
    assert (info.status, error.message, error.ending, error.worker) == (Status.RUNNING, message, RunEnding.CRASHED, "here:1")


async def test_to_tell_it_twice_or_of_a_stranger_does_no_harm(broker: Broker) -> None:
    await waits.delay()
    session = await a_claimer(broker)
    [lease] = await broker.claim(session.id, 1, (), 10)
    for _ in range(2):
        assert await report_death(broker, session.id, "out of memory")
    assert await report_death(broker, secrets.token_bytes(16), "out of memory")

    [record] = await broker.read([lease.envelope.id])
    assert record is not None
    assert record.crashes == 1


async def test_a_broker_that_is_away_for_a_moment_is_told_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = FaultyBroker()
    session = await a_claimer(broker)
    broker.away.add("beat")
    monkeypatch.setattr(death_report, "PAUSES", Pauses(0.01, 0.01))
    telling = asyncio.create_task(report_death(broker, session.id, "signal SIGKILL"))
    await asyncio.sleep(0.05)
    assert not telling.done()
    broker.away.clear()

    assert await telling
    assert await broker.console.workers() == []


class Refuses(MemoryBroker):
    async def beat(self, beat: Beat) -> BeatAnswer:
        raise BrokerRefused("its password has changed")


class IsSilent(MemoryBroker):
    async def beat(self, beat: Beat) -> BeatAnswer:
        await asyncio.sleep(60.0)
        raise AssertionError("waited for in vain")


class IsAway(FaultyBroker):
    def __init__(self) -> None:
        super().__init__()
        self.away.add("beat")


@pytest.mark.parametrize("kind", [Refuses, IsSilent, IsAway])
async def test_a_broker_that_does_not_take_it_is_given_up(kind: Callable[[], MemoryBroker], monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor has more to do, and upkeep comes to the same without it."""
    monkeypatch.setattr(death_report, "ANSWER_WITHIN", 0.05)

    assert not await _soon(report_death(kind(), secrets.token_bytes(16), "exit code 1"))


async def _soon(told: Awaitable[bool]) -> bool:
    async with asyncio.timeout(2.0):
        return await told
