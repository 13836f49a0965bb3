"""Progress of runs: what is reported while they run, what remains afterwards, and the effect of a wrong report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskflow import JobContext, JobFailed, JobHandle, Progress, Worker, enqueue, job
from taskflow.broker.protocol import Broker
from taskflow.worker.events import BrokerCallFailed
from tests.support.waiting import until_running
from tests.worker.scene import EventRecorder, Run, a_faulty_broker, count_calls, options

WRONG: dict[str, Callable[[JobContext], object]] = {
    "note": lambda ctx: ctx.progress(0.5, Path("x")),  # type: ignore[arg-type]
    "fraction": lambda ctx: ctx.progress(3),
    "type": lambda ctx: ctx.progress("0.5"),  # type: ignore[arg-type]
}


@job(name="tests.progress.wrong", max_attempts=1)
async def reports_wrongly(ctx: JobContext, which: str) -> None:
    WRONG[which](ctx)


@job(name="tests.progress.neighbour", max_attempts=1)
async def neighbour() -> str:
    await asyncio.sleep(0.3)
    return "done"


@job(name="tests.progress.steps")
async def steps(ctx: JobContext, number: int) -> None:
    for step in range(number):
        ctx.progress((step + 1) / number, f"step {step + 1}")


@job(name="tests.progress.in_thread")
def in_thread(ctx: JobContext) -> None:
    ctx.progress(0.25, "from a thread")
    Run.release_thread.wait(20)


@job(name="tests.progress.waits")
async def waits(ctx: JobContext) -> None:
    ctx.progress(0.0, "begun")
    Run.started.set()
    await Run.release.wait()
    ctx.progress(0.5, "half way")
    Run.started.set()
    await asyncio.sleep(20)


@pytest.mark.parametrize("which", WRONG)
async def test_a_wrong_report_fails_its_own_job_and_harms_no_neighbour(broker: Broker, which: str) -> None:
    heard = EventRecorder()
    neighbours = await enqueue(neighbour.bind() for _ in range(20))
    wrong = await reports_wrongly.delay(which)
    async with Worker(options=options(heard)):
        with pytest.raises(JobFailed, match="progress"):
            await wrong.result(20)
        assert [await handle.result(20) for handle in neighbours] == ["done"] * 20
    assert not [event for event in heard.events if isinstance(event, BrokerCallFailed)]


async def test_the_last_report_of_a_short_job_stays_with_it(broker: Broker) -> None:
    """The job ends long before the next beat."""
    handle = await steps.delay(3)
    async with Worker():
        await handle.result(20)
    assert await progress_of(handle) == Progress(1.0, "step 3")


@pytest.mark.parametrize("is_plain", [False, True])
async def test_progress_is_shown_within_two_seconds(broker: Broker, is_plain: bool) -> None:
    """A worker's beats are 5 s apart unless there is progress to report."""
    handle = await (in_thread if is_plain else waits).delay()
    async with Worker(grace=0.1):
        await until_shown(handle, Progress(0.25, "from a thread") if is_plain else Progress(0.0, "begun"))
        Run.release.set()
        if not is_plain:
            await until_shown(handle, Progress(0.5, "half way"))
        Run.release_thread.set()
        await handle.cancel()


async def test_a_run_that_reports_all_the_time_makes_a_beat_a_second() -> None:
    @job(name="tests.progress.busy")
    async def busy(ctx: JobContext) -> None:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            ctx.progress(0.5, f"{time.monotonic()}")
            await asyncio.sleep(0.001)

    async with a_faulty_broker() as broker:
        calls = count_calls(broker, "beat")
        handle = await busy.delay()
        async with Worker():
            await handle.result(20)
            assert 2 <= calls["beat"] <= 6


async def test_a_report_that_did_not_reach_the_store_is_sent_again() -> None:
    heard = EventRecorder()
    async with a_faulty_broker() as broker:
        handle = await waits.delay()
        async with Worker(options=options(heard, ttl=4.0, grace=0.1)):
            broker.away.add("beat")
            await Run.started.wait()
            await heard.wait_for(BrokerCallFailed)
            broker.away.clear()
            await until_shown(handle, Progress(0.0, "begun"))
            await handle.cancel()


async def progress_of(handle: JobHandle[Any]) -> Progress | None:
    info = await handle.info()
    assert info is not None
    return info.progress


async def until_shown(handle: JobHandle[Any], progress: Progress) -> None:
    async with asyncio.timeout(20):
        await until_running(handle)
    async with asyncio.timeout(2.0):
        while await progress_of(handle) != progress:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
