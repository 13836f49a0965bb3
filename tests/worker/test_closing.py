"""The end of a worker: cancelled half-way, its session lost half-way, at the end of `asyncio.run`, or on a closed loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import taskflow
from taskflow import ConfigurationError, JobContext, Status, Worker, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.protocol import Broker
from taskflow.model.session import Beat
from taskflow.worker.events import SessionEnded, SessionOpened, WindingDown
from taskflow.worker.options import WorkerOptions
from tests.support.waiting import until
from tests.worker.scene import EventRecorder, FaultyBroker, Run, a_faulty_broker, options, waits


def cancel_all(*spared: asyncio.Task[Any] | None) -> None:
    for task in asyncio.all_tasks() - {*spared}:
        task.cancel()


def heartbeats() -> list[threading.Thread]:
    """Return the heartbeat threads."""
    return [thread for thread in threading.enumerate() if thread.name == "taskflow-heartbeat"]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_winding_down_whose_tasks_are_all_cancelled_is_done_to_its_end(broker: Broker, times: int) -> None:
    """Foreign code or a job may cancel them; the worker leaves, and no heartbeat continues."""
    handle = await waits.options(max_attempts=1).delay()
    the_test = asyncio.current_task()
    heard = EventRecorder()

    async def host() -> None:
        async with Worker(options=options(heard, grace=3600.0)):
            await Run.started.wait()

    hosting = asyncio.create_task(host())
    await heard.wait_for(WindingDown)
    for _ in range(times):
        cancel_all(the_test)
        await asyncio.sleep(0)
    await asyncio.wait([hosting], timeout=20)
    assert hosting.done()
    assert await handle.status() is Status.READY
    assert await broker.admin.workers() == []
    await until(lambda: not heartbeats())


async def test_a_worker_whose_own_closing_alone_is_cancelled_goes_on_with_its_grace_period(broker: Broker) -> None:
    heard = EventRecorder()
    handle = await waits.delay()

    async def host() -> None:
        async with Worker(options=options(heard, grace=3600.0)):
            await Run.started.wait()

    hosting = asyncio.create_task(host())
    await heard.wait_for(WindingDown)
    for task in asyncio.all_tasks():
        if "SessionLoop._run_sessions" in repr(task):
            task.cancel()
    await asyncio.sleep(0.1)
    Run.release.set()
    await hosting
    assert await handle.status() is Status.SUCCEEDED
    assert await broker.admin.workers() == []


@pytest.mark.parametrize("how", ["reaped", "no beat"])
async def test_a_session_that_is_lost_while_it_winds_down_stops_its_runs(how: str) -> None:
    """Other workers run these jobs already: the grace period is over at once, and no other session begins."""
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        handle = await waits.delay()
        began_at = 0.0
        async with Worker(options=options(heard, grace=3600.0)):
            await Run.started.wait()
            loop, began_at = asyncio.get_running_loop(), time.monotonic()
            if how == "reaped":
                [worker] = await broker.admin.workers()
                leave = Beat(session=worker.session.id, leaving=True)
                tasks = []
                loop.call_later(0.1, lambda: tasks.append(loop.create_task(broker.beat(leave))))
            else:
                loop.call_later(0.1, broker.away.add, "beat")
                loop.call_later(2.0, broker.away.clear)
        assert time.monotonic() - began_at < 10
        assert await handle.status() is Status.READY
    [ended] = [event for event in heard.events if isinstance(event, SessionEnded)]
    assert not ended.is_followed
    assert sum(isinstance(event, SessionOpened) for event in heard.events) == 1


async def test_no_session_follows_one_that_is_lost_while_it_finishes() -> None:
    async with a_faulty_broker() as broker:
        heard = EventRecorder()
        await waits.delay()
        async with Worker(options=options(heard)) as worker:
            await Run.started.wait()
            [record] = await broker.admin.workers()
            finishing = asyncio.create_task(worker.finish())
            await asyncio.sleep(0)
            await broker.beat(Beat(session=record.session.id, leaving=True))
            await finishing
    [ended] = [event for event in heard.events if isinstance(event, SessionEnded)]
    assert not ended.is_followed
    assert sum(isinstance(event, SessionOpened) for event in heard.events) == 1


def test_a_run_that_asyncio_run_cancels_with_its_worker_is_handed_back() -> None:
    """The worker's block is in a background task, and the main task returns."""

    @job(name="tests.closing.once", max_attempts=1)
    async def once(ctx: JobContext) -> None:
        started.set()
        await asyncio.Event().wait()

    broker = MemoryBroker()
    started = asyncio.Event()

    async def work() -> None:
        async with Worker(options=options(EventRecorder(), ttl=20.0)):
            await asyncio.Event().wait()

    async def main() -> Any:
        handle = await once.delay()
        tasks.append(asyncio.create_task(work()))
        await started.wait()
        return handle

    async def look(handle: Any) -> Any:
        return await handle.info(), await broker.admin.workers()

    tasks: list[Any] = []
    with default_app().using(broker):
        handle = asyncio.run(main())
        info, workers = asyncio.run(look(handle))
    assert (info.status, info.failures, info.attempt) == (Status.READY, 0, 1)
    assert workers == []


async def test_a_run_that_a_stranger_cancels_alone_has_failed(broker: Broker) -> None:
    """This also holds while the worker's block is cancelled as it winds down: only a run that is cancelled with the block is handed
    back."""

    @job(name="tests.closing.fails", max_attempts=1)
    async def fails() -> None:
        Run.started.set()
        await Run.release.wait()
        raise ValueError("of its own")

    handle = await fails.delay()
    heard = EventRecorder()

    async def host() -> None:
        async with Worker(options=options(heard, grace=3600.0, ttl=20.0)):
            await asyncio.Event().wait()

    hosting = asyncio.create_task(host())
    await Run.started.wait()
    hosting.cancel()
    await heard.wait_for(WindingDown)
    Run.release.set()
    with pytest.raises(asyncio.CancelledError):
        await hosting
    assert await handle.status() is Status.FAILED


def test_a_worker_whose_loop_is_closed_leaves_and_beats_no_more() -> None:
    """Two Ctrl-Cs under `asyncio.run` may close it before the end of the block has run, and the process may live on."""
    broker = FaultyBroker()
    loop = asyncio.new_event_loop()
    heard: list[Any] = []

    async def begin() -> Any:
        handle = await waits.delay()
        await Worker(options=WorkerOptions(ttl=0.4, stall_limit=0.0, subscribers=(heard.append,))).__aenter__()
        await Run.started.wait()
        return handle

    with default_app().using(broker):
        handle = loop.run_until_complete(begin())
        loop.close()
        give_up_at = time.monotonic() + 10
        while heartbeats():
            assert time.monotonic() < give_up_at, "the heartbeat continues"
            time.sleep(0.01)
        assert asyncio.run(broker.admin.workers()) == []
        assert asyncio.run(handle.status()) is Status.READY


def test_two_ctrl_cs_under_asyncio_run_leave_no_lease() -> None:
    broker = FaultyBroker()

    async def main() -> None:
        handles.append(await waits.delay())
        async with Worker(options=options(EventRecorder(), grace=3600.0, ttl=2.0)):
            await Run.started.wait()
            loop = asyncio.get_running_loop()
            for after in (0.1, 0.3):
                loop.call_later(after, os.kill, os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()

    handles: list[Any] = []
    with default_app().using(broker):
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        give_up_at = time.monotonic() + 10
        while asyncio.run(broker.admin.workers()):
            assert time.monotonic() < give_up_at, "its session beats on"
            time.sleep(0.02)
        assert asyncio.run(handles[0].status()) is Status.READY


async def test_a_worker_that_is_entered_twice_is_refused(broker: Broker) -> None:
    """It is refused in its own block, and after it."""
    worker = Worker(options=options(EventRecorder()))
    async with worker:
        with pytest.raises(ConfigurationError, match="this Worker was entered before"):
            await worker.__aenter__()
        assert await (await simple.delay()).result(10) is None
    with pytest.raises(ConfigurationError, match="create another Worker"):
        await worker.__aenter__()
    assert await broker.admin.workers() == []


@job(name="tests.closing.simple")
async def simple(ctx: JobContext) -> Any:
    return ctx.state


@asynccontextmanager
async def failing_lifespan() -> AsyncIterator[str]:
    yield "state"
    raise OSError("the pool could not be closed")


async def test_a_lifespan_whose_exit_fails_does_not_hide_the_blocks_error(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    taskflow.configure(lifespan=failing_lifespan)
    with pytest.raises(LookupError, match="the block's own"), caplog.at_level(logging.ERROR, "taskflow.worker"):
        async with Worker(options=options(EventRecorder())):
            raise LookupError("the block's own")
    assert "the lifespan's cleanup failed too, after LookupError" in caplog.text
    assert "the pool could not be closed" in caplog.text


async def test_runs_end_by_themselves_and_none_begins(broker: Broker) -> None:
    """However long the runs take, the grace period does not apply."""
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


async def test_no_session_follows_one_that_was_lost_while_finishing(broker: Broker) -> None:
    """Its jobs now belong to another worker, usually its successor."""
    heard = EventRecorder()
    runs = await waits.delay()
    async with Worker(options=options(heard)) as worker:
        await Run.started.wait()
        finishing = asyncio.create_task(worker.finish())
        [known] = await broker.admin.workers()
        await broker.beat(Beat(session=known.session.id, leaving=True))
        await asyncio.wait_for(finishing, 20)
    assert sum(isinstance(event, SessionEnded) for event in heard.events) == 1
    assert sum(isinstance(event, SessionOpened) for event in heard.events) == 1
    assert await runs.status() == Status.READY


async def test_verdicts_reach_the_broker_before_finish_returns() -> None:
    """This also holds if the broker is unavailable for a while: the worker has not finished yet."""
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


async def test_finish_waits_for_a_function_that_ignores_a_stop_only_for_the_grace_period(broker: Broker) -> None:
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


@job(name="tests.contexts.with_timeout", timeout=3_600)
async def with_timeout() -> None:
    await asyncio.sleep(0)


def contexts(name: str) -> list[JobContext]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is JobContext and each.job_name == name]


async def test_a_timeout_far_away_keeps_nothing_of_its_run() -> None:
    async with a_faulty_broker(), Worker():
        for _ in range(3):
            await (await with_timeout.delay()).result(20)
        await asyncio.sleep(0.1)
        assert contexts(with_timeout.name) == []
