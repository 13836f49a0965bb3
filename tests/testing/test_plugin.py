"""The pytest plugin, used as a user uses it: in a project of its own, and in-process for the details."""

from __future__ import annotations

import asyncio
import sqlite3
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskflow import (
    Discard,
    JobCancelled,
    JobContext,
    JobFailed,
    JobHandle,
    Middleware,
    Progress,
    RunNext,
    Snooze,
    Status,
    TaskflowJobs,
    Verdict,
    configure,
    enqueue,
    enqueue_sync,
    job,
)
from taskflow.app.app import default_app
from taskflow.testing import runs
from tests.docs.pages import blocks

pytest_plugins = ["pytester"]


@dataclass
class Mail:
    to: str


@job(name="tests.plugin.send")
async def send(mail: Mail, *, urgent: bool = False) -> str:
    return f"{mail.to} {urgent}"


@job(name="tests.plugin.signup")
async def signup(name: str) -> str:
    handle = await send.delay(Mail(name), urgent=True)
    return await handle.result()


@job(name="tests.plugin.complete", max_attempts=1)
async def complete(ctx: JobContext, how: str) -> str:
    await ctx.complete_in(object(), result="receipt")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    if how == "raises":
        raise ValueError("after it")
    return "ignored"


@job(name="tests.plugin.flaky", max_attempts=3)
def flaky(ctx: JobContext) -> int:
    if ctx.attempt < 3:
        raise OSError("not yet")
    return ctx.attempt


@job(name="tests.plugin.sleepy")
async def sleepy(ctx: JobContext) -> str:
    if ctx.epoch < 4:
        raise Snooze(after=timedelta(days=1))
    return f"attempt {ctx.attempt}"


@job(name="tests.plugin.stateful")
async def stateful(ctx: JobContext) -> str:
    return str(ctx.state)


@job(name="tests.plugin.sleeps")
async def sleeps() -> None:
    await asyncio.sleep(3600)


@job(name="tests.plugin.waits_in_a_thread")
def waits_in_a_thread(ctx: JobContext) -> bool:
    return ctx.cancelled.wait(60)


@job(name="tests.plugin.cancels")
async def cancels(job_id: str) -> None:
    await JobHandle.of(job_id).cancel()


@job(name="tests.plugin.never_sated")
async def never_sated(ctx: JobContext, how: str) -> None:
    if how == "snoozes":
        raise Snooze(after=0)
    await never_sated.delay(how)


async def test_what_was_sent_is_found_by_its_arguments(taskflow_jobs: TaskflowJobs) -> None:
    await send.delay(Mail("a"), urgent=True)
    taskflow_jobs.assert_enqueued(send, Mail("a"), urgent=True)
    with pytest.raises(
        AssertionError,
        match=r"send\(Mail\(to='b'\)\) was not enqueued; the nearest.*\n  tests.plugin.send\(Mail\(to='a'\), urgent=True\)",
    ):
        taskflow_jobs.assert_enqueued(send, Mail("b"))
    with pytest.raises(AssertionError, match=r"tests\.plugin\.send was enqueued"):
        taskflow_jobs.assert_not_enqueued(send)
    taskflow_jobs.assert_not_enqueued(signup)


async def test_nothing_sent_is_said_so(taskflow_jobs: TaskflowJobs) -> None:
    with pytest.raises(AssertionError, match="nothing was"):
        taskflow_jobs.assert_enqueued(signup, "a")


async def test_run_all_runs_what_the_jobs_send_too(taskflow_jobs: TaskflowJobs) -> None:
    """Also when a job waits for another's result."""
    handle = await signup.delay("a")
    assert await taskflow_jobs.run_all() == 2
    assert await handle.result() == "a True"
    assert await taskflow_jobs.run_all() == 0


async def test_retries_come_with_time(taskflow_jobs: TaskflowJobs) -> None:
    handle = await flaky.delay()
    assert await taskflow_jobs.run_all() == 1
    assert await handle.status() is Status.SCHEDULED
    assert await taskflow_jobs.advance(minutes=1) == 2
    assert await handle.result() == 3


async def test_the_last_attempt_fails_for_good(taskflow_jobs: TaskflowJobs) -> None:
    handle = await flaky.options(max_attempts=2).delay()
    await taskflow_jobs.advance(days=1, raises=False)
    with pytest.raises(JobFailed) as failure:
        await handle.result()
    assert (failure.value.type, failure.value.message) == ("OSError", "not yet")


async def test_each_job_runs_at_its_time(taskflow_jobs: TaskflowJobs) -> None:
    """Snoozes of a day, within an advance of three, cost no attempt and no real time."""
    began = taskflow_jobs.now
    handle = await sleepy.delay()
    assert await taskflow_jobs.advance(days=3) == 4
    assert await handle.result() == "attempt 1"
    info = await handle.info()
    assert info is not None
    assert info.ended_at is not None
    assert info.ended_at - began == timedelta(days=3)
    assert info.snoozes == 3


async def test_the_clock_starts_at_the_real_time(taskflow_jobs: TaskflowJobs) -> None:
    """So that an instant that the code under test takes from the real clock is due when as much time has passed."""
    handle = await send.options(at=datetime.now(UTC) + timedelta(days=1)).delay(Mail("a"))
    assert await taskflow_jobs.advance(hours=23) == 0
    assert await taskflow_jobs.advance(hours=1, seconds=5) == 1
    assert await handle.result() == "a False"


@pytest.mark.parametrize("back", [{"seconds": -5}, {"days": 1, "hours": -25}])
async def test_time_does_not_go_back(taskflow_jobs: TaskflowJobs, back: dict[str, Any]) -> None:
    before = taskflow_jobs.now
    with pytest.raises(ValueError, match=r"advance\(\) by -.* time only moves forward"):
        await taskflow_jobs.advance(**back)
    assert taskflow_jobs.now == before


async def test_a_running_job_hears_that_another_job_cancels_it(taskflow_jobs: TaskflowJobs) -> None:
    handle = await sleeps.delay()
    await cancels.delay(handle.id)
    async with asyncio.timeout(10):
        assert await taskflow_jobs.run_all() == 2
    with pytest.raises(JobCancelled):
        await handle.result()


async def test_a_running_job_hears_that_the_test_cancels_it(taskflow_jobs: TaskflowJobs) -> None:
    """One in a thread too, by word."""
    handles = [await sleeps.delay(), await waits_in_a_thread.delay()]
    running = asyncio.create_task(taskflow_jobs.run_all())
    async with asyncio.timeout(10):
        while [await handle.status() for handle in handles] != [Status.RUNNING, Status.RUNNING]:  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0)
        for handle in handles:
            await handle.cancel()
        assert await running == 2
    assert await handles[0].status() is Status.CANCELLED
    assert await handles[1].result() is True


@pytest.mark.parametrize("how", ["snoozes", "sends itself"])
async def test_a_job_that_has_no_end_is_named(taskflow_jobs: TaskflowJobs, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(runs, "MAX_RUNS", 500)
    await send.delay(Mail("a"))
    await never_sated.delay(how)
    with pytest.raises(AssertionError, match=r"500 runs, \d\d\d of them tests\.plugin\.never_sated: does it send itself, or snooze"):
        await taskflow_jobs.run_all()


async def test_runs_end_with_run_all(taskflow_jobs: TaskflowJobs) -> None:
    """Nothing of them is left for the next test, and their jobs are ready again, when it is given up."""
    handle = await sleeps.delay()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await taskflow_jobs.run_all()
    assert len(asyncio.all_tasks()) == 1
    assert await handle.status() is Status.READY


async def test_expiry_comes_with_time(taskflow_jobs: TaskflowJobs) -> None:
    handle = await send.options(after=60, expires=30).delay(Mail("a"))
    assert await taskflow_jobs.advance(seconds=45) == 0
    assert await handle.status() is Status.CANCELLED


class Shout(Middleware):
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.heard.append(context.job_name)
        return await call_next(context)


@asynccontextmanager
async def resources() -> AsyncIterator[str]:
    yield "a pool"


async def test_middleware_and_lifespan_are_those_of_the_application(taskflow_jobs: TaskflowJobs) -> None:
    shout = Shout()
    configure(middleware=[shout], lifespan=resources)
    handle = await stateful.delay()
    await taskflow_jobs.run_all()
    assert await handle.result() == "a pool"
    assert shout.heard == ["tests.plugin.stateful"]


def test_what_was_configured_is_undone() -> None:
    """It runs after the test above: nothing of it is left."""
    assert default_app().settings.middleware == ()
    assert default_app().settings.lifespan is None


def test_it_works_in_a_project_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        tasks="""
        from taskflow import job

        @job
        async def greet(name: str) -> str:
            return f"hello {name}"
        """,
        test_tasks="""
        import asyncio
        from tasks import greet

        def test_greet(taskflow_jobs):
            async def main():
                handle = await greet.delay("you")
                taskflow_jobs.assert_enqueued(greet, "you")
                await taskflow_jobs.run_all()
                return await handle.result()
            assert asyncio.run(main()) == "hello you"

        def test_apart(taskflow_jobs):
            taskflow_jobs.assert_not_enqueued(greet)
        """,
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error").assert_outcomes(passed=2)


PAGE = Path(__file__).parents[2] / "docs/how-to/test-jobs.md"


def test_the_examples_on_the_page_are_tests_that_pass(pytester: pytest.Pytester) -> None:
    """With the setting that stands beside them, and nothing else."""
    examples = "\n".join(block.text for block in blocks(PAGE, "python"))
    [settings] = [block.text for block in blocks(PAGE, "toml") if "pytest" in block.text]
    pytester.makepyfile(test_greeting=examples)
    pytester.makefile(".toml", pyproject=settings)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=examples.count("def test_"))


def test_anyios_own_plugin_serves_too(pytester: pytest.Pytester) -> None:
    """It is there wherever taskflow is."""
    pytester.makepyfile(
        test_greeting="""
        import pytest
        from taskflow import job

        @job(name="greet")
        async def greet(name: str) -> str:
            return f"hello {name}"

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.mark.anyio
        async def test_greeting(taskflow_jobs):
            await greet.options(after=60).delay("you")
            taskflow_jobs.assert_enqueued(greet, "you")
            assert await taskflow_jobs.advance(minutes=1) == 1
        """,
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio").assert_outcomes(passed=1)


# --- what a run says of itself, and what the test hears of it ----------------------------------------------------


@job(name="tests.plugin.reports")
def reports(ctx: JobContext, message: str) -> None:
    ctx.progress(0.5, "half way")
    if message:
        raise ValueError(message)


@job(name="tests.plugin.gives_up")
async def gives_up() -> None:
    raise Discard("no use")


async def test_a_record_has_the_runs_progress_and_times_in_their_order(taskflow_jobs: TaskflowJobs) -> None:
    handle = await reports.delay("")
    await taskflow_jobs.run_all()
    info = await handle.info()
    assert info is not None
    assert info.progress == Progress(0.5, "half way")
    assert info.started_at is not None
    assert info.ended_at is not None
    assert info.created_at <= info.started_at <= info.ended_at == taskflow_jobs.now


@pytest.mark.parametrize("how", ["run_all", "advance"])
async def test_a_job_that_fails_for_good_fails_the_test(taskflow_jobs: TaskflowJobs, how: str) -> None:
    """After all others have run."""
    await reports.options(max_attempts=1).delay("boom")
    sent = await send.delay(Mail("a"))
    with pytest.raises(JobFailed, match="ValueError: boom") as failure:
        await (taskflow_jobs.run_all() if how == "run_all" else taskflow_jobs.advance(1))
    assert isinstance(failure.value.__cause__, ValueError)
    assert [frame.name for frame in traceback.extract_tb(failure.value.__cause__.__traceback__)] == ["reports"]
    assert await sent.result(0) == "a False"


async def test_several_failures_are_raised_together(taskflow_jobs: TaskflowJobs) -> None:
    await reports.options(max_attempts=1).delay("one")
    await gives_up.delay()
    with pytest.raises(ExceptionGroup) as group:
        await taskflow_jobs.run_all()
    assert sorted(failure.type for failure in group.value.exceptions if isinstance(failure, JobFailed)) == [
        "ValueError",
        "taskflow.Discard",
    ]


@pytest.mark.parametrize("how", ["run_all", "advance"])
async def test_failures_are_not_raised_when_the_test_says_so(taskflow_jobs: TaskflowJobs, how: str) -> None:
    handle = await reports.options(max_attempts=1).delay("boom")
    ran = taskflow_jobs.run_all(raises=False) if how == "run_all" else taskflow_jobs.advance(1, raises=False)
    assert await ran == 1
    assert await handle.status() is Status.FAILED


async def test_a_failure_is_raised_once(taskflow_jobs: TaskflowJobs) -> None:
    await reports.options(max_attempts=1).delay("boom")
    with pytest.raises(JobFailed):
        await taskflow_jobs.run_all()
    assert await taskflow_jobs.run_all() == 0


async def test_advance_opens_the_lifespan_once(taskflow_jobs: TaskflowJobs) -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        opened.append("opened")
        yield
        opened.append("closed")

    configure(lifespan=lifespan)
    for minutes in range(5):
        await send.options(after=60 * minutes).delay(Mail(str(minutes)))
    assert await taskflow_jobs.advance(hours=1) == 5
    assert opened == ["opened", "closed"]


# --- transactions ----------------------------------------------------------------------------------------------------


async def test_a_job_sent_in_a_transaction_is_there_at_once(taskflow_jobs: TaskflowJobs) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        await send.options(connection=connection).delay(Mail("a"))
        await enqueue([send.bind(Mail("b"))], connection=connection)
    taskflow_jobs.assert_enqueued(send, Mail("a"))
    taskflow_jobs.assert_enqueued(send, Mail("b"))
    assert await taskflow_jobs.run_all() == 2


def test_a_job_sent_in_a_transaction_without_a_loop_is_there_at_once(taskflow_jobs: TaskflowJobs) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        send.options(connection=connection).delay_sync(Mail("a"))
        enqueue_sync([send.bind(Mail("b"))], connection=connection)
    taskflow_jobs.assert_enqueued(send, Mail("a"))
    taskflow_jobs.assert_enqueued(send, Mail("b"))


@pytest.mark.parametrize(("how", "status"), [("returns", Status.SUCCEEDED), ("raises", Status.FAILED)])
async def test_a_run_completes_on_any_connection_if_it_returns(taskflow_jobs: TaskflowJobs, how: str, status: Status) -> None:
    handle = await complete.delay(how)
    await taskflow_jobs.run_all(raises=False)
    assert await handle.status() is status
    if how == "returns":
        assert await handle.result() == "receipt"
