"""What a user may write, and the type that it has: `assert_type` in both checkers. Importing it declares the jobs and does nothing else."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, assert_type

from taskflow import (
    Backoff,
    Call,
    Cancel,
    Discard,
    EnqueueCall,
    EnqueueNext,
    EnqueueOptions,
    Job,
    JobContext,
    JobHandle,
    JobInfo,
    Middleware,
    Progress,
    Retry,
    RunNext,
    Snooze,
    Status,
    SyncJob,
    TaskflowJobs,
    Verdict,
    Worker,
    configure,
    current_job,
    enqueue,
    enqueue_sync,
    job,
    run_sync,
)


@dataclass
class WelcomeEmail:
    user_id: str
    email: str


@job(name="typing.send_welcome_email", max_attempts=3)
async def send_welcome_email(data: WelcomeEmail) -> None:
    print(f"to {data.email}")


@job
async def add(x: int, y: int = 1) -> int:
    return x + y


@job(queue="reports", timeout=600)
async def report(ctx: JobContext, day: date) -> str:
    await ctx.progress(0.5, "half way")
    return f"{ctx.job_id} attempt {ctx.attempt} of {ctx.max_attempts}, made {ctx.created_at}, queue {ctx.queue}, {day}"


@job
def resize(path: str) -> str:
    return path + ".small"


@job(queue="cpu")
def crunch(context: JobContext, n: int, *, by: int = 2) -> dict[str, int]:
    context.progress(1)
    return {"sum": sum(range(0, n, by))}


@job(
    name="typing.everything",
    queue="q",
    priority=1,
    max_attempts=5,
    retry=Backoff(base=1, factor=3, max=600, jitter=True),
    retry_on=(OSError,),
    discard_on=(ValueError, KeyError),
    timeout=timedelta(minutes=1),
    expires=60,
    keep_result=timedelta(days=1),
    aliases=("typing.old_name",),
)
async def everything() -> None: ...


@job(runs_in="process", timeout=60)
def factor(n: int, *, limit: int = 10) -> list[int]:
    return [each for each in range(2, limit) if n % each == 0]


@job(runs_in="process")
async def factor_first(ctx: JobContext, n: int) -> int | None:
    return n


@job(runs_in="thread")
def in_a_thread() -> int:
    return 1


@job(runs_in="loop")
async def in_the_loop() -> int:
    return 1


def the_places() -> None:
    assert_type(factor.runs_in, Literal["loop", "thread", "process"])
    of_factor: SyncJob[..., list[int]] = factor
    of_first: Job[[int], int | None] = factor_first
    print(of_factor, of_first)


def the_classes() -> None:
    """`Job` and `SyncJob` may be written as annotations."""
    of_add: Job[..., int] = add
    of_resize: SyncJob[[str], str] = resize
    assert_type(of_add.name, str)
    assert_type(of_resize("a"), str)
    function: Callable[..., Any] = add.function
    function(1)


async def the_call() -> None:
    assert_type(await add(1, 2), int)
    assert_type(await add(x=1), int)
    assert_type(await report(date(2026, 1, 1)), str)
    assert_type(await report(day=date(2026, 1, 1)), str)
    assert_type(await send_welcome_email(WelcomeEmail("u", "a@example.com")), None)
    assert_type(resize("a"), str)
    assert_type(crunch(10, by=3), dict[str, int])
    assert_type(await everything(), None)


async def the_delay() -> None:
    assert_type(await factor.delay(12, limit=5), JobHandle[list[int]])
    assert_type(await factor_first.delay(12), JobHandle[int | None])
    assert_type(await add.delay(1, 2), JobHandle[int])
    assert_type(await add.delay(1, y=2), JobHandle[int])
    assert_type(await send_welcome_email.delay(WelcomeEmail("u", "a@example.com")), JobHandle[None])
    assert_type(await report.delay(date(2026, 1, 1)), JobHandle[str])
    assert_type(await resize.delay(path="a"), JobHandle[str])
    assert_type(await crunch.delay(10, by=3), JobHandle[dict[str, int]])


def a_job_looks_like_its_function() -> None:
    assert_type(add.__name__, str)
    assert_type(resize.__qualname__, str)
    assert_type(resize.__wrapped__, Callable[..., Any])
    job(queue=None, priority=None, max_attempts=None, retry=None, retry_on=None, discard_on=None, timeout=None, expires=None)
    job(name=None, keep_result=None, aliases=None, runs_in=None)


async def the_options(moment: datetime) -> None:
    assert_type(await add.options(max_attempts=5, after=60).delay(1, 2), JobHandle[int])
    assert_type(await report.options(queue="slow").delay(day=date(2026, 1, 1)), JobHandle[str])
    assert_type(resize.options(priority=5)("a"), str)
    assert_type(resize.options(priority=5).options(timeout=1).delay_sync("a"), JobHandle[str])
    add.options(queue="math", priority=5, key="sum:1:2", expires=3600, timeout=10, keep_result=300, headers={"sent-by": "web"})
    add.options(after=timedelta(1), expires=timedelta(2), timeout=timedelta(3), keep_result=timedelta(4))
    add.options(queue=None, priority=None, after=None, at=None, expires=None, max_attempts=None, retry=None, timeout=None)
    add.options(key=None, on_conflict=None, keep_result=None, headers=None)
    add.options(at=moment, retry=Backoff(), on_conflict="keep").options(on_conflict="replace").options(on_conflict="raise")
    kept: EnqueueOptions = {"queue": "math", "key": "one"}
    assert_type(add.options(**kept).bind(1), Call[int])


async def the_calls() -> None:
    assert_type(add.bind(1, 2), Call[int])
    assert_type(add.options(queue="math").bind(1), Call[int])
    assert_type(report.bind(date(2026, 1, 1)), Call[str])
    assert_type(await enqueue(add.bind(n, n) for n in range(10)), list[JobHandle[int]])
    assert_type(await enqueue([resize.bind("a"), resize.bind(path="b")]), list[JobHandle[str]])
    assert_type(await enqueue(some_calls()), list[JobHandle[int]])
    assert_type(enqueue_sync(add.bind(n, n) for n in range(10)), list[JobHandle[int]])

    mixed: list[Call[int | str]] = [add.bind(1), resize.bind("a")]
    assert_type(await enqueue(mixed), list[JobHandle[int | str]])
    wider: Call[object] = add.bind(1)
    handles: list[JobHandle[object]] = await enqueue([wider, send_welcome_email.bind(WelcomeEmail("u", "a@example.com"))])
    handle: JobHandle[object] = await add.delay(1)
    print(handles, handle)


async def some_calls() -> AsyncIterator[Call[int]]:
    yield add.bind(1)


def without_a_loop() -> None:
    handle = add.delay_sync(1, 2)
    assert_type(handle, JobHandle[int])
    assert_type(run_sync(handle.result(timeout=10)), int)
    assert_type(run_sync(add(1)), int)
    assert_type(run_sync(add.delay(1)), JobHandle[int])


async def the_handle(handle: JobHandle[int], job_id: str) -> None:
    assert_type(await handle.result(), int)
    assert_type(await handle.result(timeout=10), int)
    assert_type(await handle.status(), Status | None)
    assert_type(await handle.cancel(), Status | None)
    assert_type(handle.id, str)
    assert_type(handle.is_new, bool)
    assert_type(JobHandle.of(job_id, job=add), JobHandle[int])
    assert_type(JobHandle.of(job_id, resize.options(queue="q")), JobHandle[str])
    assert_type(JobHandle.of(job_id), JobHandle[Any])
    info = await handle.info()
    assert_type(info, JobInfo | None)
    if info is not None:
        assert_type(info.status, Status)
        assert_type(info.progress, Progress | None)
        assert_type(info.ended_at, datetime | None)


def the_context(ctx: JobContext) -> None:
    assert_type(current_job(), JobContext)
    assert_type(ctx.job_id, str)
    assert_type(ctx.job_name, str)
    assert_type(ctx.queue, str)
    assert_type(ctx.epoch, int)
    assert_type(ctx.attempt, int)
    assert_type(ctx.max_attempts, int)
    assert_type(ctx.created_at, datetime)
    assert_type(ctx.headers, Mapping[str, str])
    assert_type(ctx.state, Any)
    assert_type(ctx.cancelled, threading.Event)
    half_way: Awaitable[None] = ctx.progress(0.5)
    print(half_way)


def the_signals() -> Iterator[Exception]:
    yield Retry()
    yield Retry("later", after=30)
    yield Retry(after=timedelta(seconds=30))
    yield Snooze(after=3600)
    yield Snooze("not yet", after=timedelta(hours=1))
    yield Discard()
    yield Discard("why")
    yield Cancel()
    yield Cancel("why")


class Timing(Middleware):
    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        call.headers["sent-by"] = "web"
        assert_type(call.headers, dict[str, str])
        assert_type(await call_next(call), None)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        verdict = await call_next(context)
        assert_type(verdict, Verdict)
        assert_type(verdict.is_final, bool)
        return verdict


@asynccontextmanager
async def resources() -> AsyncIterator[dict[str, str]]:
    yield {"database": str(datetime.now(UTC))}


async def the_rest(jobs: TaskflowJobs) -> None:
    configure(broker="memory://", enqueue_timeout=1, max_payload=1000, middleware=[Timing()], lifespan=resources)
    jobs.assert_enqueued(add, 1, y=2)
    jobs.assert_enqueued(report.options(queue="q"), date(2026, 1, 1))
    async with Worker(concurrency=50):
        pass
