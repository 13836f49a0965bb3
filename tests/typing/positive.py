"""What a user may write, and the type that it has: `assert_type` in both checkers. Importing it declares the jobs and does nothing else."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeVar, assert_type
from unittest.mock import ANY

from taskflow import (
    ActionResult,
    Backoff,
    Batch,
    Call,
    Cancel,
    Cancelled,
    Completed,
    DefaultOptions,
    Discard,
    Discarded,
    EnqueueCall,
    EnqueueNext,
    EnqueueOptions,
    ErrorInfo,
    Failed,
    Failure,
    Flow,
    FlowHandle,
    Group,
    HandedBack,
    Job,
    JobContext,
    JobHandle,
    JobInfo,
    JobPage,
    JobSelection,
    JobStopping,
    Middleware,
    NamedJob,
    Parked,
    Progress,
    QueueInfo,
    Retried,
    Retry,
    RunError,
    RunNext,
    SentFlow,
    Snooze,
    Snoozed,
    Status,
    Succeeded,
    SyncJob,
    TaskflowJobs,
    Verdict,
    Worker,
    WorkerInfo,
    configure,
    current_job,
    depends,
    enqueue,
    enqueue_sync,
    group,
    job,
    named,
    operate,
    preset,
    register_type,
    run_sync,
    send,
    send_sync,
)
from taskflow.events import Event, RunEnded

T = TypeVar("T")


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


@job(key="{project_id}", key_scope="name", on_conflict="replace")
def keyed(project_id: int) -> None: ...


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


def wait_of(attempt: int, error: Exception) -> float | None:
    return None if isinstance(error, KeyError) else 2.0**attempt


@job(retry=wait_of)
async def waits_as_it_likes() -> None: ...


@job(retry=lambda attempt, error: timedelta(minutes=attempt) if str(error) else None)
async def waits_in_minutes() -> None: ...


@preset(retry=lambda _attempt, _error: 5)(queue="io")
def waits_always() -> None: ...


@job(runs_in="process", timeout=60, stop_grace=timedelta(seconds=5), timeout_raises=True, keep_arguments=True)
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


io = preset(queue="io", max_attempts=1, retry_on=(OSError,), timeout=timedelta(minutes=1))
slow_io = io(timeout=3600)


@io
async def fetch(ctx: JobContext, url: str, *, tries: int = 1) -> bytes:
    return url.encode()


@io(name="typing.fetch_many")
async def fetch_many(urls: list[str]) -> list[bytes]:
    return [url.encode() for url in urls]


@slow_io
def crawl(ctx: JobContext, url: str) -> int:
    return len(url)


@slow_io(name="typing.crawl_all")
def crawl_all(*urls: str) -> int:
    return len(urls)


@job
async def of_any(x: Any, y: int = 1) -> int:
    return y


@job
def unannotated(x, y: int = 1) -> int:  # type: ignore[no-untyped-def]
    return y


@job(queue="odd")
def of_args(ctx: JobContext, *args: int) -> int:
    return sum(args)


@job
async def of_keywords(ctx: JobContext, *, x: int, y: int = 1) -> Any:
    return x + y


@job
async def generic(ctx: JobContext, x: T, y: int = 1) -> T:
    return x


@job(queue="odd")
async def of_kwargs(ctx: JobContext, x: int, **kwargs: Any) -> dict[str, Any]:
    return kwargs


@job
def of_anything(*args: Any, **kwargs: Any) -> int:
    return len(args)


async def the_odd_signatures() -> None:
    assert_type(await of_any.delay("a", 2), JobHandle[int])
    assert_type(unannotated.options(priority=1).bind(x=None, y=2), Call[int])
    assert_type(of_args(1, 2), int)
    assert_type(await of_args.delay(), JobHandle[int])
    assert_type(await of_keywords.delay(y=2, x=1), JobHandle[Any])
    assert_type(await generic("a", 2), str)
    assert_type(await generic.delay(x="a"), JobHandle[str])
    assert_type(await of_kwargs.options(priority=1).delay(1, a="a"), JobHandle[dict[str, Any]])
    assert_type(await of_anything.delay(1, "a", b=2), JobHandle[int])


async def the_presets() -> None:
    of_fetch: Job[..., bytes] = fetch
    of_crawl: SyncJob[[str], int] = crawl
    print(of_fetch, of_crawl)
    assert_type(await fetch("a"), bytes)
    assert_type(await fetch.delay("a", tries=2), JobHandle[bytes])
    assert_type(await fetch_many(["a"]), list[bytes])
    assert_type(crawl("a"), int)
    assert_type(crawl_all.bind("a", "b"), Call[int])


def the_places() -> None:
    assert_type(factor.runs_in, Literal["loop", "thread", "process"])
    assert_type(factor.stop_grace, float)
    assert_type(JobStopping("timeout").reason, Literal["cancelled", "timeout", "shutdown", "lost"])
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
    assert_type(await report(date(2026, 1, 1)), str)
    assert_type(await send_welcome_email(WelcomeEmail("u", "a@example.com")), None)
    assert_type(resize("a"), str)
    assert_type(crunch(10, by=3), dict[str, int])


async def the_delay() -> None:
    assert_type(await factor.delay(12, limit=5), JobHandle[list[int]])
    assert_type(await add.delay(1, 2), JobHandle[int])
    assert_type(await send_welcome_email.delay(WelcomeEmail("u", "a@example.com")), JobHandle[None])
    assert_type(await resize.delay(path="a"), JobHandle[str])
    assert_type(await crunch.delay(10, by=3), JobHandle[dict[str, int]])


def a_job_looks_like_its_function() -> None:
    assert_type(add.__name__, str)
    assert_type(resize.__wrapped__, Callable[..., Any])
    job(queue=None, priority=None, max_attempts=None, retry=None, retry_on=None, discard_on=None, timeout=None, expires=None)
    job(name=None, keep_result=None, aliases=None, runs_in=None, key=None, key_scope=None, on_conflict=None)
    assert_type(keyed.options(key="").bind(7), Call[None])
    assert_type(keyed.options(key="all", key_scope="queue").delay_sync(project_id=7), JobHandle[None])


async def the_options(moment: datetime) -> None:
    assert_type(await add.options(max_attempts=5, after=60).delay(1, 2), JobHandle[int])
    assert_type(await report.options(queue="slow").delay(day=date(2026, 1, 1)), JobHandle[str])
    assert_type(resize.options(priority=5)("a"), str)
    assert_type(resize.options(priority=5).options(timeout=1).delay_sync("a"), JobHandle[str])
    add.options(queue="math", priority=5, key="sum:1:2", expires=3600, timeout=10, keep_result=300, headers={"sent-by": "web"})
    add.options(queue=None, priority=None, after=None, at=None, expires=None, max_attempts=None, retry=None, timeout=None)
    add.options(key="k", throttle=60, debounce=timedelta(seconds=5), at_most=None)
    add.options(key=None, key_scope=None, on_conflict=None, keep_result=None, headers=None, connection=None, on_failure=None)
    add.options(on_failure=resize.bind("a")).options(on_failure=report.options(queue="slow").bind(day=date(2026, 1, 1)))
    add.options(tags=("import:42",)).options(tags=["a", "b"]).options(tags=None)
    add.options(at=moment, retry=Backoff(), on_conflict="keep").options(on_conflict="replace").options(on_conflict="raise")
    kept: EnqueueOptions = {"queue": "math", "key": "one"}
    assert_type(add.options(**kept).bind(1), Call[int])


@job(on_failure=resize.options(queue="slow").bind("a"), tags=("nightly",))
async def followed() -> None: ...


async def the_operations() -> None:
    assert_type(await operate.queues(), list[QueueInfo])
    assert_type(await operate.workers(), list[WorkerInfo])
    async for info in operate.jobs(tag="import:42", status=("failed", Status.CANCELLED), job=add, queue=None):
        assert_type(info, JobInfo)
        assert_type(info.error, ErrorInfo | None)
        assert_type(info.tags, tuple[str, ...])
    assert_type(await operate.page(status="failed", cursor="text", limit=10), JobPage)
    assert_type(await operate.count(error="timeout", header="trace=1", created_before=timedelta(hours=1)), int)
    result = await operate.cancel("id", await add.delay(1), dry_run=True)
    assert_type(result, ActionResult)
    assert_type(result.refused, dict[str, int])
    assert_type(await operate.purge("01a20e69-e073-7000-9acc-49abe1cd4c9a"), ActionResult)
    assert_type(run_sync(operate.cancel(tag="import:42")), ActionResult)
    which: JobSelection = {"tag": "import:42", "status": ["failed"]}
    assert_type(await operate.retry(**which), ActionResult)
    assert_type(await operate.run_now("id", reason="now"), ActionResult)
    await operate.pause("mail")
    await operate.resume("mail")


async def by_name() -> None:
    assert_type(await send("typing.charge", order_id=7), JobHandle[Any])
    assert_type(send_sync("typing.charge", order_id=7), JobHandle[Any])
    charge = named("typing.charge").options(queue="q", tags=("a",), key="k")
    assert_type(charge, NamedJob)
    assert_type(await charge.delay(7, order_id=7), JobHandle[Any])
    assert_type(charge.bind(order_id=7), Call[Any])
    assert_type(await charge.live("k"), JobHandle[Any] | None)


async def the_calls() -> None:
    assert_type(add.bind(1, 2), Call[int])
    assert_type(await add.live("sum:1:2"), JobHandle[int] | None)
    assert_type(run_sync(resize.options(queue="images").live("a")), JobHandle[str] | None)
    assert_type(report.bind(date(2026, 1, 1)), Call[str])
    assert_type(await enqueue(add.bind(n, n) for n in range(10)), list[JobHandle[int]])
    assert_type(await enqueue(some_calls()), list[JobHandle[int]])
    assert_type(enqueue_sync(add.bind(n, n) for n in range(10)), list[JobHandle[int]])

    assert_type(add.bind(1).id, str)
    assert_type(add.bind(1).key, str | None)
    mixed: list[Call[int | str]] = [add.bind(1), resize.bind("a")]
    assert_type(await enqueue(mixed), list[JobHandle[int | str]])
    wider: Call[object] = add.bind(1)
    handles: list[JobHandle[object]] = await enqueue([wider, send_welcome_email.bind(WelcomeEmail("u", "a@example.com"))])
    handle: JobHandle[object] = await add.delay(1)
    print(handles, handle)


@job
async def parsed(page: bytes) -> list[str]:
    return page.decode().split()


@job
def stored(ctx: JobContext, words: Sequence[str], bucket: str, *, prefix: str = "") -> int:
    return len(words)


@job
async def summed(numbers: list[int], plus: int = 0) -> str:
    return str(sum(numbers) + plus)


@job
async def joined(values: list[int | str]) -> str:
    return "".join(map(str, values))


@job
async def tallied(outcomes: list[int | Failure]) -> int:
    return len([each for each in outcomes if isinstance(each, Failure)])


async def the_flows(connection: sqlite3.Connection) -> None:
    flow = fetch.bind("url") | parsed | stored.partial("bucket", prefix="a")
    assert_type(flow, Flow[int])
    assert_type(flow | resize.bind("a"), Flow[str])
    assert_type(resize.bind("bucket") | stored.partial(words=["a"]), Flow[int])
    assert_type(await flow.delay(), FlowHandle[int])
    assert_type(flow.options(connection=connection).delay_sync(), FlowHandle[int])
    assert_type(add.bind(1) | add.partial(2) | add.options(queue="q").partial(y=3) | add, Flow[int])
    assert_type(add.bind(1) | of_any, Flow[int])
    assert_type(add.bind(1) | unannotated, Flow[int])
    assert_type(add.bind(1) | of_args, Flow[int])
    assert_type(add.bind(1) | of_anything, Flow[int])
    assert_type(report.bind(date(2026, 1, 1)) | named("typing.notify").bind(x=1), Flow[Any])
    assert_type(add.bind(1) | named("typing.notify"), Flow[Any])

    assert_type(group(add.bind(n, n) for n in range(10_000)), Group[int])
    assert_type(group(add.bind(n, n) for n in range(10_000)) | summed, Flow[str])
    assert_type(group([add.bind(1), add.bind(2)]) | summed.partial(plus=1) | resize, Flow[str])
    assert_type(group((add.bind(n, n) for n in range(9)), failures="collect") | tallied, Flow[int])
    mixed: list[Call[int | str]] = [add.bind(1), resize.bind("a")]
    assert_type(group(mixed) | joined, Flow[str])
    assert_type(group([add.bind(1) | add, group([add.bind(2)]) | tallied_plainly]) | summed, Flow[str])
    assert_type(flow | group([resize.bind("a"), resize.bind("b")]), Group[str])
    assert_type(group([resize.bind("a")]) | group([add.bind(1)]) | summed, Flow[str])
    assert_type(add.bind(1) | group([add.partial(), add.partial(2)]), Group[int])
    assert_type(add.bind(1) | group([add]) | summed, Flow[str])
    assert_type(add.bind(1) | group([add], failures="collect") | tallied, Flow[int])
    assert_type(group([add.bind(1)]) | group([summed]), Group[str])
    assert_type(await group([resize.bind("a")]).delay(), FlowHandle[list[str]])
    assert_type(await group([add.bind(1)], failures="collect").delay(), FlowHandle[list[int | Failure]])

    handle = await flow.delay()
    assert_type(await handle.result(timeout=10), int)
    assert_type(await handle.status(), Status | None)
    assert_type(handle.flow.id, str)
    assert_type(await SentFlow.of("id").cancel(), int)
    assert_type(handle.flow.jobs, tuple[JobHandle[Any], ...])


@job
def tallied_plainly(numbers: Sequence[int]) -> int:
    return len(numbers)


def the_connections(connection: sqlite3.Connection) -> None:
    """Those of drivers that need not be installed are in connections.py."""
    assert_type(add.options(connection=connection).delay_sync(1), JobHandle[int])
    assert_type(enqueue_sync([add.bind(1)], connection=connection), list[JobHandle[int]])


async def some_calls() -> AsyncIterator[Call[int]]:
    yield add.bind(1)


def without_a_loop() -> None:
    handle = add.delay_sync(1, 2)
    assert_type(handle, JobHandle[int])
    assert_type(run_sync(handle.result(timeout=10)), int)
    assert_type(run_sync(add.delay(1)), JobHandle[int])


async def the_handle(handle: JobHandle[int], job_id: str) -> None:
    assert_type(await handle.result(), int)
    assert_type(await handle.status(), Status | None)
    assert_type(await handle.cancel(), Status | None)
    assert_type(await handle.run_now(), Status | None)
    assert_type(handle.id, str)
    assert_type(handle.is_new, bool)
    assert_type(JobHandle.of(job_id, job=add), JobHandle[int])
    assert_type(JobHandle.of(job_id), JobHandle[Any])
    info = await handle.info()
    assert_type(info, JobInfo | None)
    if info is not None:
        assert_type(info.status, Status)
        assert_type(info.progress, Progress | None)
        assert_type(info.arguments, Mapping[str, Any] | None)


def the_context(ctx: JobContext) -> None:
    assert_type(current_job(), JobContext)
    assert_type(current_job(default=None), JobContext | None)
    assert_type(ctx.job_id, str)
    assert_type(ctx.epoch, int)
    assert_type(ctx.created_at, datetime)
    assert_type(ctx.headers, Mapping[str, str])
    assert_type(ctx.caused_by, str | None)
    assert_type(ctx.tags, tuple[str, ...])
    assert_type(ctx.state, Any)
    assert_type(ctx.cancelled, threading.Event)
    half_way: Awaitable[None] = ctx.progress(0.5)
    complete: Awaitable[None] = ctx.complete_in(sqlite3.connect("app.db"), result={"receipt": 7})
    print(half_way, complete)


def the_signals() -> Iterator[Exception]:
    yield Retry()
    yield Retry(after=timedelta(seconds=30))
    yield Snooze(after=3600)
    yield Discard("why")
    yield Cancel("why")


class Timing(Middleware):
    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        for call in calls:
            assert_type(call.arguments, Mapping[str, Any])
            call.headers["tenant"] = str(call.arguments["tenant"])
        calls[0].headers = {"tenant": "acme"}

    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        call.headers["sent-by"] = "web"
        assert_type(call.headers, dict[str, str])
        assert_type(await call_next(call), None)

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        verdict = await call_next(context)
        assert_type(verdict, Verdict)
        assert_type(verdict.is_final, bool)
        assert_type(verdict.exception, BaseException | None)
        assert_type(context.arguments, Mapping[str, Any])
        match verdict:
            case Failed(error) | Retried(error):
                assert_type(error, RunError)
                return Discarded(error.message)
            case Cancelled(reason) | Discarded(reason):
                assert_type(reason, str)
            case Succeeded(result):
                assert_type(result, bytes)
                assert_type(verdict.value, Any)
            case Snoozed(after) | Parked(_, after):
                assert_type(after, float)
            case Completed(otherwise):
                assert_type(otherwise, Verdict)
            case HandedBack(counts):
                assert_type(counts, bool)
        return verdict

    async def ended(self, info: JobInfo) -> None:
        assert_type(info.status, Status)


def hear(event: Event) -> None:
    assert_type(event.job_id, str | None)
    if isinstance(event, RunEnded):
        assert_type(event.ran_for, float)
        assert_type(event.verdict, Verdict)


@asynccontextmanager
async def resources() -> AsyncIterator[dict[str, str]]:
    yield {"database": str(datetime.now(UTC))}


class Temperature:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


def a_session(context: JobContext) -> Iterator[Temperature]:
    yield Temperature(1.0)


async def a_reading(session: Temperature = depends(a_session)) -> float:
    return session.degrees


@job(around=[lambda context: nullcontext(context.attempt)])
async def measure(place: str, reading: float = depends(a_reading), *, at: Temperature = depends(a_session)) -> float:
    return reading


async def what_surrounds(jobs: TaskflowJobs) -> None:
    assert_type(depends(resources), dict[str, str])
    assert_type(depends(a_session), Temperature)
    assert_type(depends(a_reading), float)
    assert_type(depends(lambda: 1), int)
    assert_type(await measure.delay("here"), JobHandle[float])
    with jobs.override(a_session, lambda: Temperature(2.0)):
        pass


@job(batch=Batch(size=100, within=2.0), max_attempts=3)
async def indexes(documents: list[WelcomeEmail]) -> list[int | Failure]:
    return [len(document.user_id) for document in documents]


@job(batch=Batch(10, timedelta(seconds=1)))
def inserts(rows: list[str], db: Temperature = depends(a_session)) -> list[None]:
    return [None] * len(rows)


async def batches() -> None:
    assert_type(indexes, Job[[WelcomeEmail], int])
    assert_type(inserts, SyncJob[[str], None])
    assert_type(await indexes.delay(WelcomeEmail("u", "a")), JobHandle[int])
    assert_type(await enqueue([inserts.bind("a")]), list[JobHandle[None]])
    assert_type(await indexes(WelcomeEmail("u", "a")), int)


async def the_rest(jobs: TaskflowJobs) -> None:
    configure(broker="memory://", enqueue_timeout=1, max_payload=1000, middleware=[Timing()], lifespan=resources, subscribers=[hear])
    register_type(Temperature, encode=lambda value: value.degrees, decode=Temperature)
    configure(child_initializer=the_places, child_lifespan=resources)
    configure(defaults={"max_attempts": 3, "timeout": 1800, "retry": Backoff(), "retry_on": (OSError,), "discard_on": [KeyError]})
    configure(defaults={"timeout_raises": True, "keep_arguments": True})
    configure(defaults={"retry": wait_of})
    kept: DefaultOptions = {"queue": "io", "priority": 1, "expires": timedelta(days=1), "keep_result": None}
    configure(defaults=kept)
    jobs.assert_enqueued(add, 1, y=2)
    jobs.assert_enqueued(add, ANY, y=ANY)
    jobs.assert_enqueued(add, 1, y=2, queue="q", key=None, priority=5)
    jobs.assert_enqueued(add, 1, options={"at": datetime.now(UTC), "tags": ("a",)})
    jobs.assert_enqueued("app.tasks.add", x=1, y=ANY)
    jobs.assert_not_enqueued(add)
    with jobs.inline(), jobs.inline(raises=False):
        assert_type(await jobs.run_all(raises=False), int)
    jobs.assert_enqueued(report.options(queue="q"), date(2026, 1, 1))
    async with Worker(concurrency=50):
        pass
