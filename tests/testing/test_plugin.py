"""The pytest plugin, used as a user uses it: in a project of its own, and in-process for the details."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

from taskflow import JobContext, JobFailed, Middleware, RunNext, Snooze, Status, TaskflowJobs, Verdict, configure, job
from taskflow.app.current import default_app

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


async def test_what_was_sent_is_found_by_its_arguments(taskflow_jobs: TaskflowJobs) -> None:
    await send.delay(Mail("a"), urgent=True)
    taskflow_jobs.assert_enqueued(send, Mail("a"), urgent=True)
    with pytest.raises(
        AssertionError, match=r"send\(Mail\(to='b'\)\) was not enqueued; these were: tests.plugin.send\(Mail\(to='a'\), urgent=True\)"
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
    await taskflow_jobs.advance(days=1)
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
