"""What a user may not write. Each wrong line names the error that each checker reports there; `test_typing` compares.

It is no part of the repository-wide runs of the checkers, and nobody imports it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import date

from taskflow import (
    Backoff,
    Batch,
    Call,
    Discard,
    EnqueueCall,
    EnqueueNext,
    JobContext,
    JobHandle,
    JobInfo,
    JobStopping,
    Middleware,
    Retry,
    RunNext,
    Snooze,
    Succeeded,
    SyncJob,
    TaskflowJobs,
    Verdict,
    configure,
    current_job,
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
)
from tests.typing.positive import (
    add,
    crawl,
    fetch,
    generic,
    indexes,
    io,
    of_any,
    of_args,
    of_keywords,
    of_kwargs,
    parsed,
    report,
    resize,
    stored,
    summed,
    tallied,
    unannotated,
)


async def wrong_arguments() -> None:
    await add("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    await add(1, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]
    await add()  # E: mypy[call-arg] pyright[reportCallIssue]
    await add(1, z=2)  # E: mypy[call-arg] pyright[reportCallIssue]
    resize(1)  # E: mypy[arg-type] pyright[reportArgumentType]
    resize("a", "b")  # E: mypy[call-arg] pyright[reportCallIssue]

    await add.delay("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.delay(1, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]
    await add.delay(1, queue="math")  # E: mypy[call-arg] pyright[reportCallIssue]
    await resize.delay(path=1)  # E: mypy[arg-type] pyright[reportArgumentType]

    add.delay_sync("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.bind("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]


async def wrong_arguments_after_options() -> None:
    await add.options(queue="math")("1")  # E: mypy[arg-type] pyright[reportArgumentType]
    await add.options(queue="math").delay("1", 2)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(queue="math").options(priority=1).delay_sync()  # E: mypy[call-arg] pyright[reportCallIssue]
    add.options(queue="math").bind(1, "2")  # E: mypy[arg-type] pyright[reportArgumentType]


async def the_context_is_not_for_callers(ctx: JobContext) -> None:
    await report.delay(ctx, date(2026, 1, 1))  # E: mypy[call-arg] mypy[arg-type] pyright[reportCallIssue]
    await report.delay(ctx=ctx, day=date(2026, 1, 1))  # E: mypy[call-arg] pyright[reportCallIssue]
    report.options(queue="q").bind()  # E: mypy[call-arg] pyright[reportCallIssue]


async def wrong_arguments_of_odd_signatures() -> None:
    await of_any()  # E: mypy[call-arg] pyright[reportCallIssue]
    await of_any.delay(x=1, y="2")  # E: mypy[arg-type] pyright[reportArgumentType]
    unannotated(None, 2, 3)  # E: mypy[call-arg] pyright[reportCallIssue]
    of_args(1, "2")  # E: mypy[arg-type] pyright[reportArgumentType]
    await of_args.options(priority=1).delay(x=1)  # E: mypy[call-arg] pyright[reportCallIssue]
    await of_keywords.delay(1)  # E: mypy[call-arg] pyright[reportCallIssue]
    await of_keywords(x="1")  # E: mypy[arg-type] pyright[reportArgumentType]
    await generic.delay("a", "2")  # E: mypy[arg-type] pyright[reportArgumentType]
    await of_kwargs.delay("1")  # E: mypy[arg-type] pyright[reportArgumentType]
    await of_kwargs.delay()  # E: mypy[call-arg] pyright[reportCallIssue]


class Repository:
    def commit(self, message: str = "") -> None: ...


@job(batch=Batch(size=10, within=1.0))  # E: mypy[arg-type] pyright[reportArgumentType] pyright[reportCallIssue]
async def takes_no_list(document: str) -> list[int]:
    return [1]


@job(batch=Batch(size=10, within=1.0))  # E: mypy[arg-type] pyright[reportArgumentType] pyright[reportCallIssue]
async def returns_no_list(documents: list[str]) -> int:
    return 1


async def wrong_elements() -> None:
    await indexes.delay([1])  # E: mypy[arg-type] pyright[reportArgumentType]
    await indexes.delay()  # E: mypy[call-arg] pyright[reportCallIssue]
    job(batch=10)  # E: mypy[call-overload] pyright[reportArgumentType]
    io(batch=Batch(size=10, within="1 s"))  # E: mypy[arg-type] pyright[reportArgumentType]


def wrong_options() -> None:
    add.options(quue="math")  # E: mypy[call-arg] pyright[reportCallIssue]
    add.options(queue=1)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(after="1 min")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(at=60)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(on_conflict="ignore")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(key=7)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(key="k", throttle="1h")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(key_scope="job")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(tags="import:42")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(headers={"a": 1})  # E: mypy[dict-item] pyright[reportArgumentType]
    add.options(on_failure=add)  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(retry=wrong_wait)  # E: mypy[arg-type] pyright[reportArgumentType]
    configure(defaults={"retry": wrong_wait})  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection="postgresql://db/app")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection=Repository())  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(connection=sqlite3.connect("app.db").cursor())  # E: mypy[arg-type] pyright[reportArgumentType]
    resize.options(queue="q").options(keep_results=1)  # E: mypy[call-arg] pyright[reportCallIssue]


async def wrong_flows() -> None:
    add.bind(1) | resize  # E: mypy[operator] pyright[reportOperatorIssue]
    fetch.bind("url") | parsed | resize  # E: mypy[operator] pyright[reportOperatorIssue]
    fetch.bind("url") | parsed | stored  # E: mypy[operator] pyright[reportOperatorIssue]
    fetch.bind("url") | parsed | stored.partial(1)  # E: mypy[call-overload] pyright[reportArgumentType]
    fetch.bind("url") | parsed | stored.partial("b", "c")  # E: mypy[call-overload] pyright[reportCallIssue]
    fetch.bind("url") | parsed | stored.partial("b", suffix="c")  # E: mypy[call-overload] pyright[reportCallIssue]
    group([add.bind(1)]) | add  # E: mypy[operator] pyright[reportOperatorIssue]
    group([resize.bind("a")]) | summed  # E: mypy[operator] pyright[reportOperatorIssue]
    group([add.bind(1)], failures="collect") | summed  # E: mypy[operator] pyright[reportOperatorIssue]
    group([resize.bind("a")], failures="collect") | tallied  # E: mypy[operator] pyright[reportOperatorIssue]
    group([add.bind(1)], failures="ignore")  # E: mypy[call-overload] pyright[reportCallIssue] pyright[reportArgumentType]
    group([add]).delay()  # E: mypy[attr-defined] pyright[reportAttributeAccessIssue]
    resize.bind("a") | group([add])  # E: mypy[operator] mypy[arg-type] pyright[reportOperatorIssue]
    group([group([add.bind(1)])])  # E: mypy[arg-type] pyright[reportCallIssue] pyright[reportArgumentType]
    add | add  # E: mypy[operator] pyright[reportOperatorIssue]
    add.bind(1) | crawl.function  # E: mypy[operator] pyright[reportOperatorIssue]
    result: str = await (await (add.bind(1) | add).delay()).result()  # E: mypy[assignment] pyright[reportAssignmentType]
    print(result)


async def wrong_lookups() -> None:
    await add.live(7)  # E: mypy[arg-type] pyright[reportArgumentType]
    print((await add.live("sum")).id)  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]


async def wrong_operations() -> None:
    await operate.cancel(tags="a")  # E: mypy[call-arg] pyright[reportCallIssue]
    await operate.run_now(after=1)  # E: mypy[call-arg] pyright[reportCallIssue]
    await operate.cancel(tag=42)  # E: mypy[arg-type] pyright[reportArgumentType]
    await operate.count(header=("trace", "1"))  # E: mypy[arg-type] pyright[reportArgumentType]
    await operate.retry(job=print)  # E: mypy[arg-type] pyright[reportArgumentType]
    await operate.page(limit="10")  # E: mypy[arg-type] pyright[reportArgumentType]
    await operate.jobs(tag="a")  # E: mypy[misc] pyright[reportGeneralTypeIssues]
    for _ in operate.jobs(tag="a"):  # E: mypy[attr-defined] pyright[reportGeneralTypeIssues]
        pass
    _one: int = await operate.cancel(tag="a")  # E: mypy[assignment] pyright[reportAssignmentType]


async def wrong_results() -> None:
    _one: str = await add(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _three: JobHandle[str] = await add.delay(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _five: Call[str] = add.bind(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _six: int = await add.delay(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    _eight: int = add(1)  # E: mypy[assignment] pyright[reportAssignmentType]
    await resize("a")  # E: mypy[misc] pyright[reportGeneralTypeIssues]
    run_sync(resize("a"))  # E: mypy[arg-type] pyright[reportArgumentType]
    _ten: SyncJob[[str], int] = resize  # E: mypy[assignment] pyright[reportAssignmentType]


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
    _one: list[JobHandle[str]] = await enqueue([add.bind(1)])  # E: mypy[list-item] pyright[reportAssignmentType]
    _three: list[JobHandle[int]] = await enqueue([add.bind(1), resize.bind("a")])  # E: mypy[list-item] pyright[reportAssignmentType]
    enqueue_sync([add.bind(1)], connection="postgresql://db/app")  # E: mypy[arg-type] pyright[reportArgumentType]


@job(queues="q")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportCallIssue]
async def with_a_wrong_option() -> None: ...


@job(retry=3)  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
async def with_a_wrong_retry() -> None: ...


def wrong_wait(attempt: int, error: Exception) -> str:
    return f"{attempt} s"


@job(on_failure=add)  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
async def followed_by_a_job() -> None: ...


def wrong_set_ups_of_children() -> None:
    configure(child_initializer=3)  # E: mypy[arg-type] pyright[reportArgumentType]
    configure(child_initializer=takes_one)  # E: mypy[arg-type] pyright[reportArgumentType]
    configure(child_lifespan=yields_one)  # E: mypy[arg-type] pyright[reportArgumentType]


def takes_one(model: str) -> None: ...


def yields_one() -> Iterator[int]:
    yield 1


def a_wrong_reason_to_stop() -> JobStopping:
    return JobStopping("killed")  # E: mypy[arg-type] pyright[reportArgumentType]


@job(runs_in="fork")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
def with_a_wrong_place() -> None: ...


@job(key=("project_id",))  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType]
def keyed_by_names(project_id: int) -> None: ...


@job("name")  # E: mypy[call-overload] mypy[untyped-decorator] pyright[reportArgumentType] pyright[reportCallIssue]
def with_a_name() -> None: ...


async def wrong_names(handle: JobHandle[int]) -> None:
    await send(order_id=7)  # E: mypy[call-arg] pyright[reportCallIssue]
    await send(add, 1)  # E: mypy[arg-type] pyright[reportArgumentType]
    named("typing.charge").options(quue="q")  # E: mypy[call-arg] pyright[reportCallIssue]
    named("typing.charge")(7)  # E: mypy[operator] pyright[reportCallIssue]
    info = await handle.info()
    assert info is not None
    info.arguments["order_id"]  # E: mypy[index] pyright[reportOptionalSubscript]


async def wrong_presets() -> None:
    preset(quue="io")  # E: mypy[call-arg] pyright[reportCallIssue]
    preset(name="n")  # E: mypy[call-arg] pyright[reportCallIssue]
    io(quue="io")  # E: mypy[call-overload] pyright[reportCallIssue]
    await fetch.delay(b"a")  # E: mypy[arg-type] pyright[reportArgumentType]
    _one: JobHandle[str] = await fetch.delay("a")  # E: mypy[assignment] pyright[reportAssignmentType]
    crawl(1)  # E: mypy[arg-type] pyright[reportArgumentType]


def wrong_defaults() -> None:
    preset(keep_arguments="yes")  # E: mypy[arg-type] pyright[reportArgumentType]
    add.options(keep_arguments=True)  # E: mypy[call-arg] pyright[reportCallIssue]
    configure(defaults={"max_attempt": 3})  # E: mypy[arg-type] pyright[reportArgumentType]
    configure(defaults={"max_attempts": "3"})  # E: mypy[arg-type] pyright[reportArgumentType]
    current_job(default=None).job_id  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]  # noqa: B018


def wrong_signals() -> Iterator[Exception]:
    yield Snooze()  # E: mypy[call-arg] pyright[reportCallIssue]
    yield Retry(after="soon")  # E: mypy[arg-type] pyright[reportArgumentType]
    yield Discard(404)  # E: mypy[arg-type] pyright[reportArgumentType]


class Wrong(Middleware):
    async def enqueue(self, call: EnqueueCall, call_next: EnqueueNext) -> None:
        call.headers["n"] = 1  # E: mypy[assignment] pyright[reportArgumentType]
        call.queue = "other"  # E: mypy[misc] pyright[reportAttributeAccessIssue]
        call.arguments["n"] = 1  # E: mypy[index] pyright[reportIndexIssue]
        call.arguments = {}  # E: mypy[misc] pyright[reportAttributeAccessIssue]
        await call_next()  # E: mypy[call-arg] pyright[reportCallIssue]

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        context.arguments["n"] = 1  # E: mypy[index] pyright[reportIndexIssue]
        verdict = await call_next(context)
        print(verdict.exception.args)  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]
        verdict.exception = None  # E: mypy[misc] pyright[reportAttributeAccessIssue]
        return await call_next  # E: mypy[misc] mypy[no-any-return] pyright[reportGeneralTypeIssues]


class Confused(Middleware):
    async def stamp(self, calls: Sequence[EnqueueCall]) -> None: ...  # E: mypy[override] pyright[reportIncompatibleMethodOverride]

    def ended(self, info: JobInfo) -> None: ...  # E: mypy[override] pyright[reportIncompatibleMethodOverride]

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        return Succeeded(7)  # E: mypy[arg-type] pyright[reportArgumentType]


def hear_nothing() -> None: ...


def the_rest(jobs: TaskflowJobs) -> None:
    configure(middleware=[Wrong])  # E: mypy[list-item] pyright[reportArgumentType]
    configure(subscribers=[hear_nothing])  # E: mypy[list-item] pyright[reportArgumentType]
    configure(subscribers=print)  # E: mypy[arg-type] pyright[reportArgumentType]
    configure(brokers="memory://")  # E: mypy[call-arg] pyright[reportCallIssue]
    configure(lifespan=resize)  # E: mypy[arg-type] pyright[reportArgumentType]
    register_type(date, encode=date.isoformat, decode=float.fromhex)  # E: mypy[arg-type] pyright[reportArgumentType]
    register_type(date(2026, 1, 1), encode=date.isoformat, decode=date.fromisoformat)  # E: mypy[arg-type] pyright[reportArgumentType]
    Backoff(1)  # E: mypy[call-arg] pyright[reportCallIssue]
    Backoff(base="1")  # E: mypy[arg-type] pyright[reportArgumentType]
    current_job().progress("half")  # E: mypy[arg-type] pyright[reportArgumentType]
    current_job().complete_in("app.db")  # E: mypy[arg-type] pyright[reportArgumentType]
    current_job().complete_in(sqlite3.connect("app.db"), "receipt")  # E: mypy[call-arg] pyright[reportCallIssue]
    jobs.assert_enqueued(add, "1")  # E: mypy[call-overload] pyright[reportArgumentType] pyright[reportCallIssue]
    jobs.assert_enqueued(add, 1, z=2)  # E: mypy[call-arg] pyright[reportCallIssue]
    jobs.assert_enqueued(add, 1, options={"quee": "a"})  # E: mypy[call-arg] pyright[reportCallIssue]
    jobs.inline("no")  # E: mypy[arg-type] mypy[call-arg] pyright[reportCallIssue]
    from taskflow import jobs as misspelt  # E: mypy[attr-defined] pyright[reportAttributeAccessIssue]  # noqa: F401
