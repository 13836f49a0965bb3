"""A worker that has nothing to do polls only with its beats, and misses nothing by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from taskflow import Worker
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer
from taskflow.worker import fetcher
from tests.worker.scene import EventRecorder, Run, count_calls, options, waits

TTL = 0.6
"""An idle session beats three times in this time."""


class Counting(MemoryBroker):
    """Its listeners hear nothing, as where every notification is lost. If `is_blind`, beats do not report what there is to do."""

    def __init__(self) -> None:
        super().__init__(rules=Rules(upkeep_every=0.05))
        self.calls = count_calls(self, "claim", "beat", "upkeep")
        self.is_blind = False
        self.is_deaf = False

    def listen(self, topics: Sequence[str]) -> Waiter:
        return WakeUpFlag().listen(topics) if self.is_deaf else super().listen(topics)

    async def beat(self, beat: Beat) -> BeatAnswer:
        answer = await super().beat(beat)
        return BeatAnswer(lost=answer.lost, stopping=answer.stopping) if self.is_blind else answer


@pytest.fixture
async def broker() -> AsyncIterator[Counting]:
    opened = Counting()
    with default_app().using(opened):
        yield opened


@pytest.fixture(autouse=True)
def _run() -> None:
    Run.started, Run.release = asyncio.Event(), asyncio.Event()


@pytest.mark.parametrize("is_blind", [False, True], ids=["beats tell", "beats tell nothing"])
async def test_an_idle_worker_asks_by_its_beats_alone(broker: Counting, monkeypatch: pytest.MonkeyPatch, is_blind: bool) -> None:
    """This holds as long as they report what there is to do; otherwise it polls as often as before."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", TTL / 4)
    broker.is_blind = is_blind
    async with Worker(options=options(EventRecorder(), ttl=TTL)):
        await asyncio.sleep(TTL)
        broker.calls.clear()
        await asyncio.sleep(4 * TTL)
        calls = broker.calls.copy()
    if is_blind:
        assert calls["claim"] > 8
        assert calls["upkeep"] > 8
    else:
        assert 6 <= calls["beat"] <= 13
        assert calls["claim"] <= 1  # a loop that was blocked for long ignores old beats
        assert calls["upkeep"] <= 1


async def test_a_job_without_a_nudge_is_found_by_the_next_heartbeat(broker: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the worker would poll only much later."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", 5 * TTL)
    monkeypatch.setattr(fetcher, "TRUSTED_INTERVALS", 20)
    broker.is_deaf = True
    async with Worker(options=options(EventRecorder(), ttl=TTL)):
        await asyncio.sleep(6 * TTL)
        broker.calls.clear()
        await waits.delay()
        await asyncio.wait_for(Run.started.wait(), 60)
        assert broker.calls["claim"] == 1
        assert broker.calls["beat"] <= 3
        Run.release.set()


async def test_a_worker_that_gets_no_nudges_polls_as_often_as_before(broker: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that knows that nudges are lost polls as often as before."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", TTL / 4)
    monkeypatch.setattr(Waiter, "is_prompt", False)
    async with Worker(options=options(EventRecorder(), ttl=TTL)):
        await asyncio.sleep(TTL)
        broker.calls.clear()
        await asyncio.sleep(4 * TTL)
        assert broker.calls["claim"] > 8
