"""What happens to a dead process's jobs when its death is reported to the broker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import pytest

from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerRefused
from taskflow.model.pauses import Pauses
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.worker import registration
from taskflow.worker.registration import report_death
from tests.worker.scene import FaultyBroker


async def a_claimer(broker: Broker, name: str = "here:1") -> Session:
    session = Session(id=secrets.token_bytes(16), name=name)
    await broker.register(session)
    return session


async def test_a_death_is_reported_once_the_broker_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = FaultyBroker()
    session = await a_claimer(broker)
    broker.away.add("beat")
    monkeypatch.setattr(registration, "PAUSES", Pauses(0.01, 0.01))
    telling = asyncio.create_task(report_death(broker, session.id, "signal SIGKILL"))
    await asyncio.sleep(0.05)
    assert not telling.done()
    broker.away.clear()

    assert await telling
    assert await broker.admin.workers() == []


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
    """The supervisor has other work, and upkeep has the same effect without the report."""
    monkeypatch.setattr(registration, "ANSWER_TIMEOUT", 0.05)

    assert not await _soon(report_death(kind(), secrets.token_bytes(16), "exit code 1"))


async def _soon(told: Awaitable[bool]) -> bool:
    async with asyncio.timeout(2.0):
        return await told
