"""Outages of many tries: every loop of a worker that tries again goes on for as long as the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from taskflow import BrokerUnavailable, Worker
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.model.envelope import Lease
from taskflow.model.verdict import Settled, Settlement
from taskflow.worker.events import BrokerCallFailed, SessionEnded, SessionOpened
from tests.worker.scene import EventRecorder, FaultyBroker, Run, options, waits

TRIES = 2_000
"""More than the 1,024 doublings after which a float overflows."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses take no time."""
    sleep = asyncio.sleep

    async def pass_by(seconds: float, result: Any = None) -> Any:
        return await sleep(0 if seconds < 100 else seconds, result)

    monkeypatch.setattr(asyncio, "sleep", pass_by)


class FailsAtFirst(MemoryBroker):
    """Memory of which one verb, `failing`, does not answer for the first `TRIES` times."""

    def __init__(self, failing: str) -> None:
        super().__init__()
        self._failing = failing
        self._left = TRIES

    def _try(self, verb: str) -> None:
        if verb == self._failing and self._left:
            self._left -= 1
            raise BrokerUnavailable("it is away, for this test")

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        self._try("claim")
        return await super().claim(session, request, queues, limit)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        self._try("settle")
        return await super().settle(settlements)


def troubles(heard: EventRecorder, doing: str) -> int:
    return sum(isinstance(event, BrokerCallFailed) and event.operation == doing for event in heard.events)


@pytest.mark.parametrize(("verb", "doing"), [("claim", "claiming"), ("settle", "settling")])
async def test_a_session_goes_on_after_2000_tries(quick: None, verb: str, doing: str) -> None:
    heard = EventRecorder()
    Run.release.set()
    with default_app().using(FailsAtFirst(verb)):
        handle = await waits.delay()
        async with Worker(options=options(heard, ttl=60.0)):
            assert await handle.result(30) == "epoch 1"
    assert troubles(heard, doing) == TRIES
    assert not any(isinstance(event, SessionEnded) for event in heard.events)


async def test_a_worker_begins_another_session_after_2000_tries(quick: None) -> None:
    class Forgetful(FaultyBroker):
        left = TRIES + 1

        async def register(self, session: Any) -> None:
            if self.left <= TRIES and self.left:
                self.left -= 1
                raise BrokerUnavailable("it is away, for this test")
            self.left -= self.left > TRIES
            await super().register(session)

    broker, heard = Forgetful(), EventRecorder()
    Run.release.set()
    with default_app().using(broker):
        async with Worker(options=options(heard)):
            broker.away = {"beat"}
            await heard.wait_for(SessionEnded)
            broker.away = set()
            await heard.wait_for(SessionOpened, times=2)
            assert await (await waits.delay()).result(30) == "epoch 1"
    assert troubles(heard, "a new session") == TRIES


async def test_a_drain_goes_on_after_2000_tries(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, heard, left = MemoryBroker(), EventRecorder(), iter(range(TRIES))
    console = broker.console
    queues = console.queues

    async def away_at_first() -> Any:
        if next(left, None) is not None:
            raise BrokerUnavailable("it is away, for this test")
        return await queues()

    monkeypatch.setattr(console, "queues", away_at_first)
    monkeypatch.setattr(type(broker), "console", property(lambda self: console))
    with default_app().using(broker):
        async with Worker(options=options(heard)) as worker, asyncio.timeout(30):
            await worker.drained()
    assert troubles(heard, "a look at the queues") == TRIES
