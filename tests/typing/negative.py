"""What a user may not write. Each wrong line names the error that each checker reports there; `test_typing` compares.

It is no part of the repository-wide runs of the checkers, and nobody imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

from taskflow import (
    Backoff,
    Call,
    Discard,
    EnqueueCall,
    EnqueueNext,
    JobContext,
    JobHandle,
    Middleware,
    Retry,
    RunNext,
    Snooze,
    SyncJob,
    TaskflowJobs,
    Verdict,
    configure,
    current_job,
    enqueue,
    enqueue_sync,
    job,
    run_sync,
)
from tests.typing.positive import add, report, resize


async def wrong_arguments() -> None:
    await add("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    await add(1, y="2")  # E: mypy[arg-type] pyright[reportArgumentType]
    await add(1, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]
    await add()  # E: mypy[call-arg] pyright[reportCallIssue]
    await add(1, z=2)  # E: mypy[call-arg] pyright[reportCallIssue]
    resize(1)  # E: mypy[arg-type] pyright[reportArgumentType]
    resize()  # E: mypy[call-arg] pyright[reportCallIssue]
    resize("a", "b")  # E: mypy[call-arg] pyright[reportCallIssue]

    await add.delay("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.delay(1, y="2")  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.delay(1, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]
    await add.delay()  # E: mypy[call-arg] pyright[reportCallIssue]
    await add.delay(1, queue="math")  # E: mypy[call-arg] pyright[reportCallIssue]
    await resize.delay(path=1)  # E: mypy[arg-type] pyright[reportArgumentType]

    add.delay_sync("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.delay_sync(y=2)  # E: mypy[call-arg] pyright[reportCallIssue]
    add.bind("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.bind(x=1, y="2")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.bind(1, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]


async def wrong_arguments_after_options() -> None:
    await add.options(queue="math")("1")  # E: mypy[arg-type] pyright[reportArgumentType]
    resize.options(queue="math")(path=1)  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.options(queue="math").delay("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.options(queue="math").delay(1, y="2")  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.options(queue="math").delay(1, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]
    add.options(queue="math").options(priority=1).delay_sync()  # E: mypy[call-arg] pyright[reportCallIssue]
    add.options(queue="math").bind(1, "2")  # E: mypy[arg-type] pyright[reportArgumentType]


async def the_context_is_not_for_callers(ctx: JobContext) -> None:
    await report.delay(ctx, date(2026, 1, 1))  # E: mypy[call-arg] mypy[arg-type] pyright[reportCallIssue]
    await report.delay(ctx=ctx, day=date(2026, 1, 1))  # E: mypy[call-arg] pyright[reportCallIssue]
    await report(ctx, date(2026, 1, 1))  # E: mypy[call-arg] mypy[arg-type] pyright[reportCallIssue]
    await report.delay("2026-01-01")  # E: mypy[arg-type] pyright[reportArgumentType]
    report.options(queue="q").bind()  # E: mypy[call-arg] pyright[reportCallIssue]


def wrong_options() -> None:
    add.options(quue="math")  # E: mypy[call-arg] pyright[reportCallIssue]
    add.options(queue=1)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(priority="high")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(after="1 min")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(at=60)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(on_conflict="ignore")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(headers={"a": 1})  # E: mypy[dict-item] pyright[reportArgumentType]
    add.options(retry=3)  # E: mypy[arg-type] pyright[reportArgumentType]
    resize.options(queue="q").options(keep_results=1)  # E: mypy[call-arg] pyright[reportCallIssue]


async def wrong_results() -> None:
    _one: str = await add(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _two: int = resize("a")  # E: mypy[assignment] pyright[reportAssignmentType]
    _three: JobHandle[str] = await add.delay(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _four: JobHandle[str] = add.options(queue="q").delay_sync(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _five: Call[str] = add.bind(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _six: int = await add.delay(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _seven: JobHandle[int] = add.delay(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _eight: int = add(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    await resize("a")  # E: mypy[misc] pyright[reportGeneralTypeIssues]
    _nine: str = run_sync(add.delay_sync(1).result())  # E: mypy[assignment] pyright[reportAssignmentType]
    run_sync(resize("a"))  # E: mypy[arg-type] pyright[reportArgumentType]
    _ten: SyncJob[[str], int] = resize  # E: mypy[assignment] pyright[reportAssignmentType]
    _eleven: SyncJob[[int], int] = add  # E: mypy[assignment] pyright[reportAssignmentType]


async def wrong_handles(handle: JobHandle[int], job_id: str) -> None:
    _one: str = await handle.result()  # E: mypy[assignment] pyright[reportAssignmentType]
    _two: str = await JobHandle.of(job_id, job=add).result()  # E: mypy[assignment] pyright[reportAssignmentType]
    JobHandle.of(1)  # E: mypy[call-overload] pyright[reportArgumentType]
    JobHandle.of(job_id, job="add")  # E: mypy[call-overload] pyright[reportArgumentType]
    await handle.result(timeout="1")  # E: mypy[arg-type] pyright[reportArgumentType]
    (await handle.status()).is_ended  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]  # noqa: B018
    (await handle.info()).status  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]  # noqa: B018


async def wrong_batches() -> None:
    await enqueue(add.bind(n) for n in "ab")  # E: mypy[arg-type] pyright[reportArgumentType]
    await enqueue(add.bind(1))  # E: mypy[arg-type] pyright[reportArgumentType]
    await enqueue([add.delay(1)])  # E: mypy[arg-type] pyright[reportArgumentType]
    _one: list[JobHandle[str]] = await enqueue([add.bind(1)])  # E: mypy[list-item] pyright[reportAssignmentType]
    _two: list[JobHandle[str]] = enqueue_sync([add.bind(1)])  # E: mypy[list-item] pyright[reportAssignmentType]
    _three: list[JobHandle[int]] = await enqueue([add.bind(1), resize.bind("a")])  # E: mypy[list-item] pyright[reportAssignmentType]
    enqueue_sync([1])  # E: mypy[arg-type] pyright[reportArgumentType]


@job(queues="q")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportCallIssue]
async def with_a_wrong_option() -> None: ...


@job(retry=3)  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
async def with_a_wrong_retry() -> None: ...


@job(retry_on=("OSError",))  # E: mypy[arg-type] pyright[reportArgumentType]
async def with_a_wrong_error() -> None: ...


@job(timeout="1 min")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
def with_a_wrong_timeout() -> None: ...


@job(runs_in="fork")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
def with_a_wrong_place() -> None: ...


@job("name")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType] pyright[reportCallIssue]
def with_a_name() -> None: ...


def wrong_signals() -> Iterator[Exception]:
    yield Snooze()  # E: mypy[call-arg] pyright[reportCallIssue]
    yield Snooze(3600)  # E: mypy[arg-type] mypy[call-arg] pyright[reportCallIssue]
    yield Retry(after="soon")  # E: mypy[arg-type] pyright[reportArgumentType]
    yield Discard(404)  # E: mypy[arg-type] pyright[reportArgumentType]


class Wrong(Middleware):
    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        call.headers["n"] = 1  # E: mypy[assignment] pyright[reportArgumentType]
        call.queue = "other"  # E: mypy[misc] pyright[reportAttributeAccessIssue]
        await call_next()  # E: mypy[call-arg] pyright[reportCallIssue]

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        return await call_next  # E: mypy[misc] mypy[no-any-return] pyright[reportGeneralTypeIssues]


def the_rest(jobs: TaskflowJobs) -> None:
    configure(middleware=[Wrong])  # E: mypy[list-item] pyright[reportArgumentType]
    configure(brokers="memory://")  # E: mypy[call-arg] pyright[reportCallIssue]
    configure(lifespan=resize)  # E: mypy[arg-type] pyright[reportArgumentType]
    Backoff(1)  # E: mypy[call-arg] pyright[reportCallIssue]
    Backoff(base="1")  # E: mypy[arg-type] pyright[reportArgumentType]
    Backoff(base=timedelta(1))  # E: mypy[arg-type] pyright[reportArgumentType]
    current_job().progress("half")  # E: mypy[arg-type] pyright[reportArgumentType]
    current_job().attempts  # E: mypy[attr-defined] pyright[reportAttributeAccessIssue]  # noqa: B018
    jobs.assert_enqueued(add, "1")  # E: mypy[arg-type] pyright[reportArgumentType]
