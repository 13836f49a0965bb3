"""A worker whose store or system refuses it what it depends on."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskflow import BrokerUnavailable, Worker, job
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.url import connect
from taskflow.model.session import Beat, BeatAnswer
from taskflow.worker.events import BrokerCallFailed, DescriptorsClosed, SessionOpened
from taskflow.worker.options import WorkerOptions
from taskflow.worker.session_loop import EARLY_PAUSES
from tests.worker.scene import EventRecorder


@job(name="tests.cli.add")
async def add(x: int) -> int:
    return x + 1


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    opened = connect("memory://")
    assert isinstance(opened, MemoryBroker)
    with default_app().using(opened):
        yield opened
    await opened.close()


def without_descriptors(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The heartbeat's own connection gets an OSError from the system."""
    sibling = MemoryBroker()

    async def beat(beat: Beat) -> BeatAnswer:
        raise OSError(number, "as the system says")

    monkeypatch.setattr(sibling, "beat", beat)
    monkeypatch.setattr(broker, "sibling", lambda: sibling)


async def test_sessions_that_end_early_in_a_row_begin_at_growing_intervals(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, there may be no descriptors for a heartbeat's loop. The worker does not mistake this for descriptors that a job has
    closed."""

    def no_loop(main: Any) -> None:
        main.close()
        raise OSError(errno.EMFILE, "as the system says")

    monkeypatch.setattr("taskflow.worker.heartbeat.asyncio.run", no_loop)
    heard, times = EventRecorder(), list[float]()

    def note_time(event: Event) -> None:
        if isinstance(event, SessionOpened):
            times.append(time.monotonic())

    async with Worker(options=WorkerOptions(subscribers=(note_time, heard))):
        await heard.wait_for(SessionOpened, 5)
    for number in range(1, 5):
        assert times[number] - times[number - 1] >= 0.5 * EARLY_PAUSES.after(number)
    assert not heard.of(DescriptorsClosed)


async def test_without_descriptors_for_a_beat_the_session_lives_on(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    without_descriptors(broker, monkeypatch, errno.EMFILE)
    heard = EventRecorder()
    async with Worker(options=WorkerOptions(subscribers=(heard,))):
        await heard.wait_for(BrokerCallFailed, 3)
    assert len(heard.of(SessionOpened)) == 1


async def test_a_heartbeat_whose_descriptors_are_gone_says_so(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    without_descriptors(broker, monkeypatch, errno.EBADF)
    heard = EventRecorder()
    async with Worker(options=WorkerOptions(subscribers=(heard,))):
        await heard.wait_for(DescriptorsClosed)


async def test_drained_asks_again_while_the_broker_is_away(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    admin, outages = broker.admin, iter([BrokerUnavailable("away"), BrokerUnavailable("away")])
    queues = admin.queues

    async def away_at_first() -> Any:
        if (outage := next(outages, None)) is not None:
            raise outage
        return await queues()

    monkeypatch.setattr(admin, "queues", away_at_first)
    monkeypatch.setattr(type(broker), "admin", property(lambda self: admin))
    heard = EventRecorder()
    async with Worker(options=WorkerOptions(subscribers=(heard,))) as worker:
        async with asyncio.timeout(60):
            await worker.drained()
    assert [event.operation for event in heard.of(BrokerCallFailed)] == ["checking the queues"] * 2
