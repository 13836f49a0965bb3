"""A worker that finishes: it takes nothing new, and what it runs has all the time that it takes."""

from __future__ import annotations

import asyncio
import threading

from taskflow import Status, Worker, job
from taskflow.broker.protocol import Broker
from taskflow.model.session import Beat
from taskflow.worker.events import SessionEnded, SessionOpened
from tests.worker.scene import EventRecorder, Run, a_faulty_broker, options, waits


async def test_what_runs_ends_by_itself_and_nothing_new_begins(broker: Broker) -> None:
    """However long it takes: the grace time does not count."""
    heard = EventRecorder()
    runs = await waits.delay()
    async with Worker(options=options(heard, grace=0.0)) as worker:
        await Run.started.wait()
        finishing = asyncio.create_task(worker.finish())
        await asyncio.sleep(0)
        later = await waits.delay()
        await asyncio.wait([finishing], timeout=0.1)
        assert not finishing.done()
        Run.release.set()
        await asyncio.wait_for(finishing, 20)
        assert await runs.result(10) == "epoch 1"
        assert await later.status() == Status.READY
    assert not worker.has_forced


async def test_whoever_gives_up_the_waiting_winds_it_down_as_ever(broker: Broker) -> None:
    runs = await waits.delay()
    async with Worker(options=options(EventRecorder(), grace=0.0)) as worker:
        await Run.started.wait()
        finishing = asyncio.create_task(worker.finish())
        await asyncio.sleep(0.01)
        finishing.cancel()
        await asyncio.wait([finishing])
    assert worker.has_forced
    assert await runs.status() == Status.READY


async def test_when_its_session_is_lost_no_other_follows(broker: Broker) -> None:
    """What it ran is another's: the successor's, as a rule."""
    heard = EventRecorder()
    runs = await waits.delay()
    async with Worker(options=options(heard)) as worker:
        await Run.started.wait()
        finishing = asyncio.create_task(worker.finish())
        [known] = await broker.console.workers()
        await broker.beat(Beat(session=known.session.id, leaving=True))
        await asyncio.wait_for(finishing, 20)
    assert sum(isinstance(event, SessionEnded) for event in heard.events) == 1
    assert sum(isinstance(event, SessionOpened) for event in heard.events) == 1
    assert await runs.status() == Status.READY


async def test_what_has_ended_is_told_before_it_is_over() -> None:
    """Also when the broker is away for a while: the worker has not finished yet."""
    async with a_faulty_broker() as broker:
        runs = await waits.delay()
        async with Worker(options=options(EventRecorder())) as worker:
            await Run.started.wait()
            broker.away = {"settle"}
            finishing = asyncio.create_task(worker.finish())
            Run.release.set()
            await asyncio.wait([finishing], timeout=0.2)
            assert not finishing.done()
            broker.away = set()
            await asyncio.wait_for(finishing, 20)
            assert await runs.status() == Status.SUCCEEDED


async def test_a_function_that_goes_on_when_it_is_asked_to_stop_is_waited_for_no_longer_than_the_grace_time(broker: Broker) -> None:
    """It is past its timeout, and may never end: the worker would never be replaced."""
    begun, may_end = threading.Event(), threading.Event()

    @job(name="tests.finishing.deaf", max_attempts=1)
    def deaf() -> None:
        begun.set()
        may_end.wait(60)

    await deaf.options(timeout=0.1).delay()
    async with Worker(options=options(EventRecorder(), grace=0.2)) as worker:
        await asyncio.to_thread(begun.wait, 20)
        await asyncio.wait_for(worker.finish(), 20)
        may_end.set()
