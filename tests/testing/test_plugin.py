"""The pytest plugin, used as a user does: in a separate project, and in-process for the details."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskflow import (
    Every,
    JobContext,
    JobFailed,
    Middleware,
    Progress,
    RunNext,
    Snooze,
    Status,
    TaskflowJobs,
    Verdict,
    configure,
    enqueue,
    job,
    schedules,
)
from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from taskflow.testing import runs
from tests.docs.pages import ROOT, blocks

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


@job(name="tests.plugin.stateful")
async def stateful(ctx: JobContext) -> str:
    return str(ctx.state)


@job(name="tests.plugin.sleeps")
async def sleeps() -> None:
    await asyncio.sleep(3600)


@job(name="tests.plugin.never_sated")
async def never_sated(ctx: JobContext, how: str) -> None:
    if how == "snoozes":
        raise Snooze(after=0)
    await never_sated.delay(how)


async def test_run_all_also_runs_the_jobs_that_jobs_send(taskflow_jobs: TaskflowJobs) -> None:
    """It does so even when a job waits for another's result."""
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


async def test_the_clock_starts_at_the_real_time(taskflow_jobs: TaskflowJobs) -> None:
    """An instant that the tested code reads from the real clock is therefore due when as much time has passed."""
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


@pytest.mark.parametrize("how", ["snoozes", "sends itself"])
async def test_a_job_that_has_no_end_is_named(taskflow_jobs: TaskflowJobs, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(runs, "MAX_RUNS", 500)
    await send.delay(Mail("a"))
    await never_sated.delay(how)
    with pytest.raises(AssertionError, match=r"500 runs, and tests\.plugin\.never_sated ran \d\d\d times: does it send itself, or snooze"):
        await taskflow_jobs.run_all()


async def test_runs_end_with_run_all(taskflow_jobs: TaskflowJobs) -> None:
    """When it is given up, no run is left for the next test, and the jobs are ready again."""
    handle = await sleeps.delay()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await taskflow_jobs.run_all()
    assert len(asyncio.all_tasks()) == 1
    assert await handle.status() is Status.READY


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


def test_configured_settings_are_undone() -> None:
    """It runs after the test above: nothing of it is left."""
    assert default_app().settings.middleware == ()
    assert default_app().settings.lifespan is None


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


# --- transactions ----------------------------------------------------------------------------------------------------


async def test_a_job_sent_in_a_transaction_is_there_at_once(taskflow_jobs: TaskflowJobs) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        await send.options(connection=connection).delay(Mail("a"))
        await enqueue([send.bind(Mail("b"))], connection=connection)
    taskflow_jobs.assert_enqueued(send, Mail("a"))
    taskflow_jobs.assert_enqueued(send, Mail("b"))
    assert await taskflow_jobs.run_all() == 2


@pytest.mark.parametrize(("how", "status"), [("returns", Status.SUCCEEDED), ("raises", Status.FAILED)])
async def test_a_run_completes_on_any_connection_if_it_returns(taskflow_jobs: TaskflowJobs, how: str, status: Status) -> None:
    handle = await complete.delay(how)
    await taskflow_jobs.run_all(raises=False)
    assert await handle.status() is status
    if how == "returns":
        assert await handle.result() == "receipt"


# --- follow-ups ------------------------------------------------------------------------------------------------------


heard: list[str] = []


@job(name="tests.plugin.hears")
async def hears(of: str) -> None:
    heard.append(of)


@job(name="tests.plugin.fails", max_attempts=1)
async def fails() -> None:
    raise ValueError


async def test_a_job_that_a_schedule_has_added_sends_its_follow_up(taskflow_jobs: TaskflowJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared in a separate registry: other tests would fire this schedule, too."""
    registry = Registry()
    registry.add(hears)
    registry.add(fails)
    monkeypatch.setattr(default_app(), "registry", registry)
    job(name="tests.plugin.declared", max_attempts=1, schedule=Every(3_600), on_failure=hears.bind("declared"))(fails.function)
    await schedules.put("put", fails.options(on_failure=hears.bind("put")).bind(), Every(3_600))
    await taskflow_jobs.advance(3_600, raises=False)  # exactly one instant, wherever the clock stands
    assert sorted(heard) == ["declared", "put"]


# --- without pytest --------------------------------------------------------------------------------------------------------


WITHOUT_PYTEST = "import sys, unittest; sys.modules['pytest'] = None; unittest.main('page', argv=['page', '-v'])"


@pytest.mark.slow
def test_the_classes_of_the_page_pass_without_pytest(tmp_path: Path) -> None:
    page = [block.text for block in blocks(ROOT / "docs/how-to/test-jobs.md", "python") if "import pytest" not in block.text]
    page = [text.partition("def test_an_account_that_does_not_exist")[0] if "pytest.raises" in text else text for text in page]
    (tmp_path / "page.py").write_text("\n\n".join(page))
    ran = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT_PYTEST], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Ran 3 tests" in ran.stderr
