"""What a lost session leaves behind: its threads, its verdicts, and the start of the next session."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import taskflow
from taskflow import JobContext, Status, Worker, job
from taskflow.worker.events import RunEnded, SessionEnded, SessionOpened
from taskflow.worker.options import WorkerOptions
from tests.worker.scene import EventRecorder, FaultyBroker, Run, a_faulty_broker, options, waits


@pytest.fixture
async def broker() -> AsyncIterator[FaultyBroker]:
    async with a_faulty_broker() as opened:
        yield opened


@pytest.fixture
def begun() -> threading.Event:
    return threading.Event()


def quick(heard: EventRecorder, **more: Any) -> WorkerOptions:
    return options(heard, **{"stop_timeout": 0.2, "grace": 0.2, **more})


async def lose_session(broker: FaultyBroker, heard: EventRecorder, **away: set[str]) -> None:
    """Cause an outage that is longer than the ttl; another session has begun when this ends. `meanwhile` and `after` are further operations
    that fail then."""
    opened = len(heard.of(SessionOpened))
    broker.away = {"beat", *away.get("meanwhile", ())}
    await heard.wait_for(SessionEnded, times=opened)
    broker.away = set(away.get("after", ()))
    await heard.wait_for(SessionOpened, times=opened + 1)


@asynccontextmanager
async def a_thread_left_behind(broker: FaultyBroker, heard: EventRecorder, **more: Any) -> AsyncIterator[Worker]:
    """The worker's only thread runs a function of an earlier session, whose queue is paused."""

    @job(name="tests.past.stuck", queue="stuck")
    def stuck() -> None:
        Run.release_thread.wait(30)

    handle = await stuck.delay()
    try:
        async with Worker(options=quick(heard, concurrency=1, **more)) as worker:
            while await handle.status() is not Status.RUNNING:  # noqa: ASYNC110  # no event tells it
                await asyncio.sleep(0.01)
            await broker.admin.pause("stuck")
            await lose_session(broker, heard)
            yield worker
    finally:
        Run.release_thread.set()


@job(name="tests.past.plain", max_attempts=1)
def plain(ctx: JobContext) -> str:
    return f"epoch {ctx.epoch}"


async def test_a_worker_whose_threads_are_all_left_behind_claims_nothing_until_one_is_free(broker: FaultyBroker) -> None:
    """Other workers run the jobs that no thread could begin; then it goes on."""
    heard = EventRecorder()
    async with a_thread_left_behind(broker, heard) as worker:
        handle = await plain.delay()
        ready = worker.health.ready()
        assert (ready.is_well, ready.why) == (False, "no job can start: abandoned functions still occupy all 1 slots")
        assert ready.facts["free"] == 0
        async with Worker(options=quick(heard, concurrency=1)):
            assert await handle.result(10) == "epoch 1"
        Run.release_thread.set()
        assert await (await plain.delay()).result(10) == "epoch 1"
        assert worker.health.ready().is_well


@pytest.mark.parametrize("how", ["cancel", "timeout", "winding down"])
async def test_a_plain_job_that_waits_for_a_thread_can_be_stopped_and_costs_nothing(broker: FaultyBroker, how: str) -> None:
    """It is never called after that."""
    called = threading.Event()

    @job(name="tests.past.called", max_attempts=1)
    def call() -> None:
        called.set()

    heard = EventRecorder()
    worker = Worker(options=quick(heard, concurrency=2, ttl=20.0))
    async with worker:
        held = worker._threads.run(lambda: Run.release_thread.wait(30)), worker._threads.run(lambda: Run.release_thread.wait(30))
        handle = await call.options(timeout=0.3 if how == "timeout" else None).delay()
        while await handle.status() is not Status.RUNNING:  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.01)
        await broker.admin.pause("default")
        if how == "cancel":
            await handle.cancel()
        if how != "winding down":
            async with asyncio.timeout(10):
                while await handle.status() is Status.RUNNING:  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.01)
    Run.release_thread.set()
    await asyncio.gather(*held)
    [record] = await broker.records(handle)
    assert (record.status, record.hand_backs, record.failures) == (Status.CANCELLED if how == "cancel" else Status.READY, 0, 0)
    assert not called.is_set()


tenant = contextvars.ContextVar("tenant", default="nobody's")


@job(name="tests.past.look")
async def look() -> str:
    return tenant.get()


@job(name="tests.past.look_in_a_thread")
def look_in_a_thread() -> str:
    return tenant.get()


@pytest.mark.parametrize("times", [1, 2])
async def test_after_lost_sessions_jobs_have_the_context_variables_that_the_application_has_set(broker: FaultyBroker, times: int) -> None:
    """They also have those that the lifespan has set."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        tenant.set("the lifespan's")
        yield

    taskflow.configure(lifespan=lifespan)
    heard = EventRecorder()
    async with Worker(options=quick(heard)):
        for _ in range(times):
            await lose_session(broker, heard)
        assert await (await look.delay()).result(10) == "the lifespan's"
        assert await (await look_in_a_thread.delay()).result(10) == "the lifespan's"


async def test_a_verdict_of_a_lost_session_is_sent_when_the_worker_ends(broker: FaultyBroker) -> None:
    """The broker is back at that moment, and a verdict that waits for its next attempt is not dropped."""
    heard, others = EventRecorder(), {"claim", "upkeep"}
    handle = await waits.delay()
    async with Worker(options=options(heard, stop_timeout=20.0)):
        await Run.started.wait()
        broker.away = {"settle"}
        Run.release.set()
        await heard.wait_for(RunEnded)
        await lose_session(broker, heard, meanwhile={"settle", *others}, after={"settle", *others})
        broker.away = others
    [record] = await broker.records(handle)
    assert (record.status, record.epoch) == (Status.SUCCEEDED, 1)


@pytest.mark.parametrize("verbs", [{"register"}, {"register", "settle"}])
async def test_a_stranger_that_cancels_every_task_between_two_sessions_does_not_leave_a_worker_without_one(
    broker: FaultyBroker, verbs: set[str]
) -> None:
    """No verdict of the earlier session is lost either."""
    heard = EventRecorder()
    handle = await waits.delay()
    async with Worker(options=options(heard)) as worker:
        await Run.started.wait()
        broker.away = {*verbs, "beat", "upkeep"}
        Run.release.set()
        await heard.wait_for(SessionEnded)
        for _ in range(5):
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)
        broker.away = {"register", "upkeep"}
        assert await handle.result(10) == "epoch 1"
        broker.away = set()
        await heard.wait_for(SessionOpened, times=2)
        assert await (await look.delay()).result(10) == "nobody's"
        async with asyncio.timeout(10):
            while worker._sessions.past:  # noqa: ASYNC110  # no event tells it
                await asyncio.sleep(0.01)
