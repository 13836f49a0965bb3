"""Timeouts that are raised inside plain functions, and how the run then ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskflow import DeclarationError, Job, JobContext, JobStopping, RunEnding, Status, SyncJob, Worker, job
from taskflow.worker.children import pool
from tests.support.waiting import until_running
from tests.worker import stopping_jobs as jobs
from tests.worker.child_scene import TIMEOUT, a_worker, failure

pytestmark = pytest.mark.usefixtures("memory_broker")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with a_worker() as begun:
        yield begun


left: list[str] = []
threads: list[int] = []


@contextmanager
def noting(ctx: JobContext) -> Iterator[None]:
    try:
        yield
    finally:
        left.append("context manager")


@job(name="tests.timeout.thread", timeout=0.2, max_attempts=1, timeout_raises=True)
def in_thread(ctx: JobContext) -> str:
    threads.append(threading.get_ident())
    try:
        while True:
            time.sleep(0.01)
    except JobStopping as stopping:
        return f"in part: {stopping.reason}, {ctx.cancelled.is_set()}"


@job(name="tests.timeout.loop", timeout=0.2, max_attempts=1, timeout_raises=True)
async def in_loop(ctx: JobContext) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return f"in part: timeout, {ctx.cancelled.is_set()}"
    return ""


@job(name="tests.timeout.falls_through", timeout=0.2, max_attempts=1, timeout_raises=True, around=[noting])
def falls_through() -> None:
    try:
        while True:
            pass
    finally:
        left.append("finally")


@job(name="tests.timeout.cancelled", timeout=60, max_attempts=1, timeout_raises=True)
def watches(ctx: JobContext) -> str:
    return "asked" if ctx.cancelled.wait(TIMEOUT) else "not asked"


PLACES = {
    "thread": in_thread,
    "loop": in_loop,
    "process": jobs.returns_at_its_timeout,
    "process, async": jobs.returns_at_its_timeout_async,
}


@pytest.mark.parametrize("made", PLACES.values(), ids=PLACES)
async def test_a_value_returned_after_the_timeout_is_the_result(worker: Worker, made: Job[[], str] | SyncJob[[], str]) -> None:
    assert await (await made.delay()).result(TIMEOUT) == "in part: timeout, True"


async def test_a_thread_runs_on_undisturbed(worker: Worker) -> None:
    """The exception is raised once, in the run that it is meant for."""
    threads.clear()
    assert await (await in_thread.delay()).result(TIMEOUT) == "in part: timeout, True"
    assert await (await in_thread.options(timeout=0.5).delay()).result(TIMEOUT) == "in part: timeout, True"
    assert len(threads) == 2


async def test_a_function_that_lets_it_pass_has_exceeded_its_timeout(worker: Worker) -> None:
    """Its context managers exit, and the error shows where it was."""
    left.clear()
    failed = await failure(handle := await falls_through.delay())
    assert (failed.type, failed.message) == ("TimeoutError", f"{falls_through.name} ran longer than its timeout of 0.2 s")
    assert "while True:" in failed.traceback
    assert left == ["finally", "context manager"]
    info = await handle.info()
    assert info is not None
    assert [error.ending for error in info.errors] == [RunEnding.TIMED_OUT]


async def test_a_cancellation_interrupts_no_thread(worker: Worker) -> None:
    handle = await watches.delay()
    await until_running(handle)
    await handle.cancel()
    assert await handle.result(TIMEOUT) == "asked"


async def test_a_child_that_ignores_its_timeout_is_killed_later(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TIMEOUT_GRACE", 0.5)
    ledger = tmp_path / "ledger"
    failed = await failure(await jobs.is_deaf_to_its_timeout.delay(str(ledger)))
    assert failed.type == "TimeoutError"
    assert ledger.read_text() == "stopping timeout\n"
    handle = await jobs.is_deaf_to_its_timeout.options(timeout=60).delay(str(ledger))
    await until_running(handle)
    await handle.cancel()
    while await handle.status() is Status.RUNNING:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert ledger.read_text() == "stopping timeout\n", "a cancelled run without a stop_grace is killed at once"


def test_a_wrong_value_is_refused_where_it_is_declared() -> None:
    with pytest.raises(DeclarationError, match="timeout_raises=5: expected True or False"):
        job(name="tests.timeout.wrong", timeout_raises=5)(in_thread.function)  # type: ignore[call-overload]
