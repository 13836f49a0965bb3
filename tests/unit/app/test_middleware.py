"""The layers of middleware around sending and running."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from typing import Any

import pytest

from taskflow import ConfigurationError, JobContext, JobFailed, Status, TaskflowError, Worker, configure, job
from taskflow.app.app import App
from taskflow.app.middleware import HOOKS, EnqueueCall, EnqueueNext, Middleware, RunNext
from taskflow.model.ids import parse_id
from taskflow.model.verdict import Discarded, Failed, Retried, Succeeded, Verdict
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add, fail


class Noting(Middleware):
    def __init__(self, name: str, story: list[str]) -> None:
        self.name = name
        self.story = story

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        assert parse_id(call.job_id)
        self.story.append(f"{self.name} sends {call.job} to {call.queue}")
        call.headers["path"] = call.headers.get("path", "") + self.name
        await call_next(call)
        self.story.append(f"{self.name} has sent")

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.story.append(f"{self.name} runs {context.headers.get('path')}")
        verdict = await call_next(context)
        self.story.append(f"{self.name} saw {type(verdict).__name__}, {'final' if verdict.is_final else 'not final'}")
        return verdict


async def test_the_first_is_the_outermost(bench: Bench) -> None:
    story: list[str] = []
    configure(middleware=[Noting("a", story), Noting("b", story)])

    handle = await add.options(queue="math").delay(1, 2)
    assert story == [f"a sends {add.name} to math", f"b sends {add.name} to math", "b has sent", "a has sent"]

    story.clear()
    await bench.run_all()
    assert story == ["a runs ab", "b runs ab", "b saw Succeeded, final", "a saw Succeeded, final"]
    assert await handle.result() == 3


async def test_a_call_that_middleware_does_not_pass_on_is_not_sent(bench: Bench) -> None:
    class Swallowing(Middleware):
        async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
            return

    configure(middleware=[Swallowing()])
    with pytest.raises(TaskflowError, match=rf"{add.name}.*was not sent.*call_next"):
        await add.delay(1)
    assert await bench.claim() == []


# --- runs -----------------------------------------------------------------------------------------------------------


async def test_it_may_settle_otherwise(bench: Bench) -> None:
    """The verdict that it returns is settled."""

    class Strict(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            verdict = await call_next(context)
            return Discarded("no second chance") if isinstance(verdict, Retried) else verdict

    configure(middleware=[Strict()])
    handle = await fail.delay("once")
    assert await bench.run_all() == [Discarded("no second chance")]
    with pytest.raises(JobFailed, match="no second chance"):
        await handle.result()


async def test_a_run_that_middleware_does_not_pass_on_does_not_start(bench: Bench) -> None:
    class Cached(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            return Succeeded(add.codec.encode_result(99))

    configure(middleware=[Cached()])
    handle, failing = await add.delay(1), await fail.delay("never")
    await bench.run_all()
    assert await handle.result() == 99
    assert await failing.status() is Status.SUCCEEDED


async def test_it_sees_what_the_function_returned(bench: Bench) -> None:
    """It sees the annotated type, so that it need not import the codec."""
    seen: list[Any] = []

    class Looking(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            verdict = await call_next(context)
            assert isinstance(verdict, Succeeded)
            seen.append(verdict.value)
            assert verdict == Succeeded(verdict.result)
            assert Succeeded(verdict.result) == verdict
            assert repr(verdict).startswith("Succeeded(result=b")
            return Succeeded(b"") if verdict.value == 3 else verdict

    configure(middleware=[Looking(), Looking()])
    await add.delay(1, 2)
    assert await bench.run_all() == [Succeeded(b"")]
    await tomorrow.delay(date(2026, 1, 31))
    await bench.run_all()
    assert seen == [3, None, date(2026, 2, 1), date(2026, 2, 1)]
    assert Succeeded(tomorrow.codec.encode_result(date(2026, 2, 1))).value == date(2026, 2, 1)


@job(name="tests.middleware.tomorrow")
async def tomorrow(day: date) -> date:
    return day + timedelta(days=1)


async def test_its_own_error_is_the_runs(bench: Bench) -> None:
    """It is retried as the job's would be."""

    class Broken(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
            await call_next(context)
            raise RuntimeError("in the middle")

    configure(middleware=[Broken()])
    handle = await add.options(max_attempts=2).delay(1)
    [verdict] = await bench.run_all()
    assert isinstance(verdict, Retried)
    assert (verdict.error.type, verdict.error.message) == ("RuntimeError", "in the middle")
    assert await handle.status() is Status.SCHEDULED


async def test_a_forgotten_return_fails_the_run_and_says_so(bench: Bench) -> None:
    class Forgetful(Middleware):
        async def run(self, context: JobContext, call_next: RunNext) -> Any:
            await call_next(context)

    configure(middleware=[Forgetful()])
    handle = await add.options(max_attempts=1).delay(1)
    [verdict] = await bench.run_all()
    assert isinstance(verdict, Failed)
    with pytest.raises(JobFailed, match=r"Forgetful.run\(\) returned None: expected a verdict"):
        await handle.result()


# --- call_next more than once ------------------------------------------------------------------------------------


class AtWork:
    now = 0
    most = 0
    ended = 0


@job(name="tests.middleware.counted", max_attempts=1)
async def counted() -> str:
    AtWork.now += 1
    AtWork.most = max(AtWork.most, AtWork.now)
    try:
        await asyncio.sleep(0.05)
    finally:
        AtWork.now -= 1
        AtWork.ended += 1
    return "done"


@pytest.fixture
def _nobody_at_work() -> None:
    AtWork.now = AtWork.most = AtWork.ended = 0


class Twice(Middleware):
    def __init__(self, how: str) -> None:
        self.how = how
        self.tasks: list[Any] = []

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        if self.how == "one after the other":
            await call_next(context)
            return await call_next(context)
        if self.how == "at once":
            first, _ = await asyncio.gather(call_next(context), call_next(context))
            return first
        self.tasks.append(asyncio.ensure_future(call_next(context)))
        if self.how == "left behind":
            await asyncio.sleep(0)
        return Succeeded(counted.codec.encode_result("made up"))


@pytest.mark.parametrize("hook", [*HOOKS, "on_success", "Run", "enqueued", "end"])
def test_a_hook_that_would_not_be_called_or_awaited_is_refused(hook: str) -> None:
    async def called(self: Any, *args: Any) -> Any: ...
    def plain(self: Any, *args: Any) -> Any: ...

    wrong, right = (called, plain) if hook in ("stamp", "around") else (plain, called)
    layer = type("Layer", (Middleware,), {hook: wrong})()
    with pytest.raises(ConfigurationError, match=rf"Layer object at .*{hook}\(\) (must be|looks like a hook, but would never be called)"):
        App().configure(middleware=[layer])
    good = {hook: right} if hook in HOOKS else {"_" + hook: right}
    App().configure(middleware=[type("Layer", (Middleware,), {**good, "tenant_of": plain, "close": called})()])


@pytest.mark.usefixtures("_nobody_at_work")
async def test_middleware_that_calls_the_job_twice_at_once_fails_the_run(bench: Bench) -> None:
    configure(middleware=[Twice("at once")])
    handles = [await counted.delay() for _ in range(6)]
    async with Worker(concurrency=2):
        for handle in handles:
            with pytest.raises(JobFailed, match=r"call_next\(\) was called while an earlier call was still running"):
                await handle.result(20)
    assert AtWork.most == 2
    assert AtWork.ended == 6


@pytest.mark.usefixtures("_nobody_at_work")
@pytest.mark.parametrize("how", ["left behind", "too late"])
async def test_a_call_that_middleware_leaves_behind_does_not_outlive_the_run(bench: Bench, how: str) -> None:
    middleware = Twice(how)
    configure(middleware=[middleware])
    handles = [await counted.delay() for _ in range(6)]
    async with Worker(concurrency=1):
        for handle in handles:
            await handle.result(20)
    assert AtWork.most <= 1
    await asyncio.gather(*middleware.tasks, return_exceptions=True)
