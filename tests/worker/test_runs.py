"""How a run can end, through a real worker."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from typing import Any, NoReturn

import anyio
import pytest

from taskflow import Backoff, Discard, JobCancelled, JobContext, JobFailed, Middleware, Retry, Status, Worker, configure, current_job, job
from taskflow.app.middleware import RunNext
from taskflow.broker.protocol import Broker
from taskflow.model.verdict import RunEnding, Verdict

AT_ONCE = Backoff(base=0.0)


class Gate:
    """How this file's jobs and tests signal each other."""

    started = asyncio.Event()
    release = asyncio.Event()
    seen: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh_gate() -> None:
    Gate.started, Gate.release, Gate.seen = asyncio.Event(), asyncio.Event(), []


@job(name="tests.worker.add")
async def add(x: int, y: int = 1) -> int:
    return x + y


@job(name="tests.worker.upper")
def upper(text: str) -> str:
    assert threading.current_thread() is not threading.main_thread()
    return text.upper()


@job(name="tests.worker.waits")
async def waits() -> str:
    Gate.started.set()
    await Gate.release.wait()
    return "released"


@job(name="tests.worker.stubborn")
async def stubborn() -> str:
    Gate.started.set()
    try:
        await Gate.release.wait()
    except asyncio.CancelledError:
        return "finished all the same"
    return "released"


def _raise(what: str) -> NoReturn:
    if what == "retry":
        raise Retry
    if what == "discard":
        raise Discard("half of it is done")
    raise ConnectionError("the connection was cut")


@job(name="tests.worker.raises_when_cancelled")
async def raises_when_cancelled(what: str) -> None:
    Gate.seen.append("begun")
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        _raise(what)


@job(name="tests.worker.raises_in_its_thread")
def raises_in_its_thread(ctx: JobContext, what: str) -> None:
    Gate.seen.append("begun")
    if ctx.cancelled.wait(30):
        _raise(what)


@job(name="tests.worker.base_error", max_attempts=2, retry=AT_ONCE)
async def base_error(which: str) -> None:
    if which == "exit":
        sys.exit(3)
    if which == "interrupt":
        raise KeyboardInterrupt
    raise asyncio.CancelledError("its own")


async def test_async_and_plain_functions_are_run(broker: Broker) -> None:
    async with Worker():
        assert await (await add.delay(1, y=2)).result(10) == 3
        assert await (await upper.delay("a")).result(10) == "A"


@pytest.mark.parametrize(
    ("which", "kind"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("cancel", "asyncio.exceptions.CancelledError")]
)
async def test_base_exceptions_are_failures_like_others(broker: Broker, which: str, kind: str) -> None:
    """The worker goes on after them."""
    handle = await base_error.delay(which)
    async with Worker():
        with pytest.raises(JobFailed) as failure:
            await handle.result(10)
        assert await (await add.delay(1)).result(10) == 2
    assert failure.value.type == kind
    info = await handle.info()
    assert info is not None
    assert info.failures == 2


async def test_an_async_job_past_its_timeout_fails_and_is_retried(broker: Broker) -> None:
    handle = await waits.options(timeout=0.05, max_attempts=2, retry=AT_ONCE).delay()
    async with Worker():
        with pytest.raises(JobFailed, match=r"longer than its timeout of 0\.05 s"):
            await handle.result(10)
    info = await handle.info()
    assert info is not None
    assert info.failures == 2
    assert [error.ending for error in info.errors] == [RunEnding.TIMED_OUT] * 2
    assert all(error.ran_for is not None and error.ran_for >= 0.05 and error.worker == info.worker for error in info.errors)


async def test_a_running_job_is_cancelled_by_a_nudge(broker: Broker) -> None:
    """The nudge arrives long before the next beat would bring the request."""
    handle = await waits.delay()
    async with Worker():
        await Gate.started.wait()
        asked = time.monotonic()
        assert await handle.cancel() is Status.RUNNING
        with pytest.raises(JobCancelled):
            await handle.result(10)
        assert time.monotonic() - asked < 4.0, "a beat comes every 5 s: it was not the nudge"


async def test_a_job_that_swallows_its_cancellation_and_returns_has_succeeded(broker: Broker) -> None:
    handle = await stubborn.delay()
    async with Worker():
        await Gate.started.wait()
        await handle.cancel()
        assert await handle.result(10) == "finished all the same"


@pytest.mark.parametrize("max_attempts", [1, 2])
@pytest.mark.parametrize("raises", [raises_when_cancelled, raises_in_its_thread])
@pytest.mark.parametrize("what", ["error", "retry"])
async def test_a_cancelled_run_that_raises_is_cancelled(broker: Broker, raises: Any, what: str, max_attempts: int) -> None:
    """This holds for any error, and whether or not it was the last attempt."""
    handle = await raises.options(max_attempts=max_attempts).delay(what)
    async with Worker():
        await until_it_runs()
        await handle.cancel()
        with pytest.raises(JobCancelled):
            await handle.result(10)


@pytest.mark.parametrize("raises", [raises_when_cancelled, raises_in_its_thread])
async def test_a_cancelled_run_may_still_discard_itself(broker: Broker, raises: Any) -> None:
    """The job's own decision about its end counts."""
    handle = await raises.delay("discard")
    async with Worker():
        await until_it_runs()
        await handle.cancel()
        with pytest.raises(JobFailed, match="half of it is done"):
            await handle.result(10)


async def until_it_runs() -> None:
    while not Gate.seen:  # noqa: ASYNC110  # it may be in a thread
        await asyncio.sleep(0.01)


async def test_structured_concurrency_works_in_the_first_step_of_a_job(broker: Broker) -> None:
    """asyncio.timeout, TaskGroup and an anyio scope belong to the job's own task."""

    @job(name="tests.worker.structured", max_attempts=1)
    async def structured() -> list[str]:
        done: list[str] = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            done.append("timeout")
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        done.append("group")
        with anyio.move_on_after(0.01):
            await anyio.sleep(10)
        done.append("scope")
        return done

    handle = await structured.delay()
    async with Worker():
        assert await handle.result(10) == ["timeout", "group", "scope"]


async def test_each_run_has_separate_context_variables(broker: Broker) -> None:
    variable = contextvars.ContextVar("variable", default=0)

    @job(name="tests.worker.variable")
    async def count() -> int:
        variable.set(variable.get() + 1)
        assert current_job().job_name == "tests.worker.variable"
        return variable.get()

    @job(name="tests.worker.variable_in_a_thread")
    def count_in_a_thread() -> str:
        variable.set(variable.get() + 1)
        return f"{variable.get()} {current_job().job_name}"

    async with Worker():
        assert [await (await count.delay()).result(10) for _ in range(3)] == [1, 1, 1]
        assert await (await count_in_a_thread.delay()).result(10) == "1 tests.worker.variable_in_a_thread"


class Hangs(Middleware):
    """Hangs before or after the plain function that it surrounds."""

    def __init__(self, where: str) -> None:
        self.where = where

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        verdict = await call_next(context) if self.where == "after" else None
        Gate.started.set()
        await Gate.release.wait()
        return verdict or await call_next(context)


@pytest.mark.parametrize("where", ["before", "after"])
async def test_timeout_and_cancel_reach_middleware_around_a_plain_function(broker: Broker, where: str) -> None:
    """Unlike a thread, it can be interrupted. The function itself is then not called."""
    configure(middleware=[Hangs(where)])
    async with Worker():
        handle = await upper.options(timeout=0.05, max_attempts=1).delay("a")
        with pytest.raises(JobFailed, match="longer than its timeout"):
            await handle.result(10)
        Gate.started.clear()
        handle = await upper.delay("a")
        await Gate.started.wait()
        await handle.cancel()
        with pytest.raises(JobCancelled):
            await handle.result(10)
