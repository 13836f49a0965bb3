"""When a worker does upkeep again: by what the store answers."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import pytest

from taskflow import BrokerUnavailable, Worker
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import UpkeepResult
from taskflow.broker.wakeups import Waiter
from taskflow.model.envelope import Lease
from taskflow.model.schedule import Offer
from taskflow.model.session import Session
from taskflow.worker.events import Events
from taskflow.worker.maintenance import BATCH_PAUSE, PORTIONS, Maintenance
from taskflow.worker.registration import Registration
from tests.worker.scene import EventRecorder, options

FIRST_PORTION = PORTIONS[0][1]
LATER = UpkeepResult(next_in=1.5)
DROPPED = UpkeepResult(dropped=3, next_in=0.0)


class Told(MemoryBroker):
    """Answers as it is told, and has no more to say then."""

    def __init__(self, answers: Sequence[UpkeepResult]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.limits: list[int] = []
        self.is_done = asyncio.Event()

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        if not self.answers:
            self.is_done.set()
            await asyncio.Event().wait()
        self.limits.append(limit)
        return self.answers.pop(0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for a nudge; none is really waited for."""
    waited: list[float] = []

    async def wait(waiter: Waiter, timeout: float | None = None) -> bool:
        assert timeout is not None
        waited.append(timeout)
        await asyncio.sleep(0)
        return False

    monkeypatch.setattr(Waiter, "wait", wait)
    return waited


async def fires_none(offers: Sequence[Offer]) -> float:
    return math.inf


async def kept_up(*answers: UpkeepResult) -> Told:
    broker = Told(answers)
    registration = Registration(broker, Session(id=bytes(16), name="worker"), Events(EventRecorder()))
    upkeep = Maintenance(registration, random.Random(1), on_ready=lambda: None, on_offers=fires_none, on_ended=None)
    running = asyncio.create_task(upkeep.run())
    try:
        await asyncio.wait_for(broker.is_done.wait(), 10)
    finally:
        running.cancel()
    return broker


async def test_between_portions_of_what_nobody_waits_for_the_server_is_free_for_a_while(waits: list[float]) -> None:
    broker = await kept_up(DROPPED, DROPPED, LATER)
    assert waits == [BATCH_PAUSE, BATCH_PAUSE, 1.5]
    assert broker.limits == [FIRST_PORTION] * 3


class SlowToClaim(MemoryBroker):
    """Notes each claim when it ends, and each call of upkeep when it begins."""

    def __init__(self, *, is_away: bool) -> None:
        super().__init__()
        self.is_away = is_away
        self.noted: list[str] = []
        self.is_kept_up = asyncio.Event()

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        await asyncio.sleep(0.05)
        self.noted.append("claim")
        if self.is_away:
            raise BrokerUnavailable("it is away, for this test")
        return await super().claim(session, request, queues, limit)

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        self.noted.append("upkeep")
        self.is_kept_up.set()
        return await super().upkeep(limit, ends=ends)


@pytest.mark.parametrize("is_away", [False, True], ids=["answered", "failed"])
async def test_upkeep_begins_after_the_first_claim(is_away: bool) -> None:
    """A caller may be waiting for this worker, and upkeep would keep the server busy meanwhile."""
    broker = SlowToClaim(is_away=is_away)
    with default_app().using(broker):
        async with Worker(options=options(EventRecorder())):
            await asyncio.wait_for(broker.is_kept_up.wait(), 10)
    assert broker.noted[:2] == ["claim", "upkeep"]
