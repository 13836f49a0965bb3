"""What surrounds the call of a job's function: `around=`, middleware's `around` and `depends`, and when each ends."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Annotated, Any

import pytest

from taskflow import (
    Backoff,
    DeclarationError,
    Discard,
    EncodeError,
    JobContext,
    JobFailed,
    RunNext,
    Status,
    TaskflowJobs,
    Verdict,
    Worker,
    configure,
    depends,
    enqueue,
    job,
    preset,
)
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.model.codec import encode_by_name
from taskflow.model.errors import UnknownArgument
from tests.worker import around_jobs
from tests.worker.around_jobs import CASES, HANGS, SEEN, Does, Noting, Part, noting, noting_async


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


class Surrounding(Noting):
    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        verdict = await call_next(context)
        SEEN.append(f"verdict {type(verdict).__name__}")
        return verdict


def fresh_session(context: JobContext) -> Iterator[str]:
    SEEN.append("session begins")
    try:
        yield f"session of {context.job_name}"
    except BaseException as error:
        SEEN.append(f"session sees {error}")
        raise
    finally:
        SEEN.append("session ends")


def a_user(session: str = depends(fresh_session)) -> str:
    SEEN.append("user")
    return f"user in {session}"


async def a_client(session: str = depends(fresh_session)) -> AsyncIterator[str]:
    SEEN.append("client begins")
    yield f"client in {session}"
    SEEN.append("client ends")


io = preset(around=[noting("preset")])


@io(around=[noting("own")], name="around.plain")
def plain(number: int, *, session: str = depends(fresh_session), user: str = depends(a_user)) -> str:
    SEEN.append(f"runs in {'a thread' if threading.current_thread() is not threading.main_thread() else 'the main thread'}")
    return f"{number} {session} {user}"


@job(name="around.asynchronous", around=[noting("own"), noting_async("own too")])
async def asynchronous(number: int, client: str = depends(a_client), session: str = depends(fresh_session)) -> str:
    SEEN.append("runs")
    return f"{number} {client} {session}"


NESTED = ["middleware begins", "defaults begins"], ["defaults ends", "middleware ends", "verdict Succeeded"]


async def test_context_managers_of_a_plain_function_nest_in_its_thread(taskflow_jobs: TaskflowJobs) -> None:
    configure(middleware=[Surrounding()], defaults={"around": [noting("defaults")]})
    handle = await plain.delay(7)

    await taskflow_jobs.run_all()

    assert await handle.result(0) == "7 session of around.plain user in session of around.plain"
    inner = ["preset begins", "own begins", "session begins", "user", "runs in a thread", "session ends", "own ends", "preset ends"]
    assert [*NESTED[0], *inner, *NESTED[1]] == SEEN


async def test_an_async_function_may_have_async_ones_too(taskflow_jobs: TaskflowJobs) -> None:
    configure(middleware=[Surrounding()], defaults={"around": [noting("defaults")]})
    handle = await asynchronous.delay(7)

    await taskflow_jobs.run_all()

    assert await handle.result(0) == "7 client in session of around.asynchronous session of around.asynchronous"
    begins = ["own begins", "own too begins", "session begins", "client begins", "runs"]
    assert [*NESTED[0], *begins, "client ends", "session ends", "own too ends", "own ends", *NESTED[1]] == SEEN


async def test_it_surrounds_runs_in_child_processes(broker: Broker) -> None:
    """This includes middleware, as the application configures it in the child."""
    async with Worker():
        handle = await around_jobs.in_child.delay()
        assert await handle.result(20) == ["middleware begins", "own begins", "session begins"]


@contextmanager
def failing(context: JobContext) -> Iterator[None]:
    yield
    raise LookupError("in the teardown")


@contextmanager
def refusing(context: JobContext) -> Iterator[None]:
    if context.attempt:
        raise LookupError("before the start")
    yield


@job(name="around.fails", around=[noting("own"), failing], max_attempts=1)
def fails_at_its_end() -> None:
    SEEN.append("runs")


@job(name="around.never", around=[noting("own"), refusing], retry=Backoff(base=0.01), max_attempts=2)
async def never_runs() -> None:
    raise AssertionError


async def test_its_error_is_the_runs_error(taskflow_jobs: TaskflowJobs) -> None:
    fails, never = await fails_at_its_end.delay(), await never_runs.delay()

    assert await taskflow_jobs.advance(minutes=1, raises=False) == 3

    for handle, words in ((fails, "in the teardown"), (never, "before the start")):
        with pytest.raises(JobFailed, match=f"LookupError: {words}"):
            await handle.result(0)
    assert SEEN.count("own ends LookupError") == 3


@job(name="around.suppressed", around=[lambda context: suppress(KeyError)])
def suppressed() -> None:
    raise KeyError("gone")


def swallowing() -> Iterator[str]:
    with suppress(KeyError):
        yield "value"


async def swallowing_async() -> AsyncIterator[str]:
    with suppress(KeyError):
        yield "value"


@job(name="around.swallowed", max_attempts=1)
def swallowed(value: str = depends(swallowing)) -> None:
    raise KeyError("kept")


@job(name="around.swallowed_async", max_attempts=1)
async def swallowed_async(value: str = depends(swallowing_async)) -> None:
    raise KeyError("kept")


async def test_a_context_manager_may_suppress_an_error_and_a_dependency_may_not(taskflow_jobs: TaskflowJobs) -> None:
    """A run whose dependency swallows the error would seem to have succeeded."""
    handles = [await suppressed.delay(), await swallowed.delay(), await swallowed_async.delay()]

    await taskflow_jobs.run_all(raises=False)

    assert [await handle.status() for handle in handles] == [Status.SUCCEEDED, Status.FAILED, Status.FAILED]


@job(name="around.raises", max_attempts=1)
def raises(session: str = depends(fresh_session)) -> None:
    raise KeyError("mine")


async def test_a_dependency_sees_the_error(taskflow_jobs: TaskflowJobs) -> None:
    configure(middleware=[])
    await raises.delay()

    await taskflow_jobs.run_all(raises=False)

    assert SEEN == ["session begins", "session sees 'mine'", "session ends"]


# --- calls --------------------------------------------------------------------------------------------------------


async def test_callers_do_not_give_dependencies() -> None:
    with pytest.raises(EncodeError, match=r"session.*is not an argument of this function; its arguments are number"):
        await plain.delay(7, session="mine")
    with pytest.raises(EncodeError, match="takes at most 1 positional"):
        asynchronous.bind(7, "mine")  # type: ignore[call-arg, unused-ignore]


async def test_a_direct_call_makes_the_missing_dependencies() -> None:
    """It does so in the caller's thread or task, without what surrounds runs."""
    assert plain(7, user="ada") == "7 session of around.plain ada"
    assert SEEN == ["session begins", "runs in the main thread", "session ends"]
    assert await asynchronous(8, session="mine") == "8 client in session of around.asynchronous mine"


async def test_a_test_overrides_a_dependency(taskflow_jobs: TaskflowJobs) -> None:
    """The override applies to everything that depends on it, and only inside the block."""
    handles = []
    with taskflow_jobs.override(fresh_session, lambda: "fake"):
        handles += [await plain.delay(1), await asynchronous.delay(2)]
        await taskflow_jobs.run_all()
    handles.append(await plain.delay(3))
    await taskflow_jobs.run_all()

    results = [await handle.result(0) for handle in handles]
    assert results[:2] == ["1 fake user in fake", "2 client in fake fake"]
    assert "fake" not in results[2]


def numbers(first: int = 1) -> Iterator[int]:
    SEEN.append("numbers begin")
    yield first
    SEEN.append("numbers end")


async def one_more() -> int:
    return 1


class Page:
    """A dependency with parameters, as in FastAPI. It cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> Iterator[int]:
        yield self.size


@job(name="around.odd", max_attempts=1)
async def odd(
    a: int = depends(partial(numbers, 5)),
    b: int = depends(partial(one_more)),
    c: Any = depends(lambda: one_more()),
    d: int = depends(Page(3)),
) -> list[int]:
    return [a, b, c, d]


async def test_any_callable_may_be_a_dependency(taskflow_jobs: TaskflowJobs) -> None:
    """The type of the returned value decides: a generator is entered, and a coroutine is awaited."""
    handle = await odd.delay()
    await taskflow_jobs.run_all()
    assert await handle.result(0) == [5, 1, 1, 3]
    assert SEEN[-2:] == ["numbers begin", "numbers end"]


def losing() -> Iterator[None]:
    try:
        yield
    except BaseException:
        raise ConnectionError("lost in the rollback") from None


@job(name="around.discards", max_attempts=5)
def discards(lost: None = depends(losing)) -> None:
    SEEN.append("runs")
    raise Discard("bad card")


async def test_a_dependency_that_fails_at_its_end_does_not_replace_the_jobs_error(taskflow_jobs: TaskflowJobs) -> None:
    """A Discard would become a retry, which charges the card again."""
    handle = await discards.delay()
    await taskflow_jobs.run_all(raises=False)
    with pytest.raises(JobFailed, match="bad card"):
        await handle.result(0)
    assert SEEN.count("runs") == 1


async def ends_its_task() -> AsyncIterator[None]:
    """Cancel the task that it started, and await it without catching the cancellation."""
    task = asyncio.create_task(asyncio.sleep(60))
    try:
        yield
    finally:
        task.cancel()
        await task


@job(name="around.discards_async", max_attempts=5)
async def discards_async(lost: None = depends(ends_its_task)) -> None:
    SEEN.append("runs")
    raise Discard("bad card")


async def test_a_cancelled_task_of_a_dependency_does_not_replace_the_jobs_error_either(taskflow_jobs: TaskflowJobs) -> None:
    handle = await discards_async.delay()
    await taskflow_jobs.run_all(raises=False)
    with pytest.raises(JobFailed, match="bad card"):
        await handle.result(0)
    assert SEEN.count("runs") == 1


def the_error(kind: str, part: Part, body: Does) -> str:
    """Return a pattern for a run's error, which is the first one raised. In `around=` a later one replaces it, as in any `with`."""
    if HANGS in (part.setup, part.teardown):
        return r"TimeoutError: .* ran longer than its timeout of 0\.3 s"
    raised = [
        (each, where) for each, where in ((part.setup, "setup"), (body, "job"), (part.teardown, "teardown")) if isinstance(each, type)
    ]
    if not raised:
        name = r"depends\(\w*[.<>\w]*Part\.\w+\) must yield once: " if kind == "depends" else ""
        return f"RuntimeError: {name}generator didn't {'stop' if part.yields else 'yield'}"
    error, where = raised[-1 if kind == "around" else 0]
    return where if error is Discard else rf"{error.__name__}: '?{where}"


async def test_the_first_error_in_a_child_process_is_the_runs_error(broker: Broker) -> None:
    """Setup, job or teardown may raise it, including errors that end a process. A run that is stopped in any of them has timed out."""
    wrong = []
    async with Worker(concurrency=4):
        handles = [await declared.delay() for declared in CASES.values()]
        for case, handle in zip(CASES, handles, strict=True):
            kind, _, part, body = case
            with pytest.raises(JobFailed) as failed:
                await handle.result(60)
            if not re.search(f"attempt 1 of 1: {the_error(kind, part, body)}|{the_error(kind, part, body)}$", str(failed.value)):
                wrong.append((case, str(failed.value)))
    assert wrong == []


@job(name="around.open")
def takes_more(number: int, *, session: str = depends(fresh_session), **more: str) -> str:
    return session


async def test_a_job_with_any_keywords_refuses_dependencies_too(taskflow_jobs: TaskflowJobs) -> None:
    """Otherwise any sender could replace them."""
    with pytest.raises(EncodeError, match="session"):
        await takes_more.delay(1, session="evil")  # type: ignore[call-arg, unused-ignore]
    call = takes_more.bind(1, other="x")
    forged = encode_by_name({"number": 1, "session": "evil"}, job="around.open", limits=default_app().limits)
    with pytest.raises(UnknownArgument, match="session"):
        takes_more.codec.decode_arguments(forged)
    [handle] = await enqueue([call])
    await taskflow_jobs.run_all()
    assert await handle.result(0) == "session of around.open"


# --- declarations -------------------------------------------------------------------------------------------------


def needs_more(session: str) -> str:
    return session


def declare_before(db: str = depends(fresh_session), number: int = 1) -> None: ...
def declare_positional(db: str = depends(fresh_session), /) -> None: ...
def declare_async(client: str = depends(a_client)) -> None: ...
def declare_nothing() -> None: ...
def declare_annotated(db: Annotated[str, depends(fresh_session)]) -> None: ...
def declare_partial(one: int = depends(partial(one_more))) -> None: ...


def test_invalid_dependencies_and_context_managers_are_refused_at_the_declaration() -> None:
    for function in (declare_before, declare_positional):
        with pytest.raises(DeclarationError, match=r"db = depends\(fresh_session\) precedes arguments that callers pass"):
            job(function)
    with pytest.raises(DeclarationError, match=r"client .* is async, and the job is a plain function"):
        job(declare_async)
    with pytest.raises(DeclarationError, match="db: write a dependency as a default, as in db: Session"):
        job(declare_annotated)
    with pytest.raises(DeclarationError, match="its parameter session has no default"):
        depends(needs_more)
    with pytest.raises(DeclarationError, match=r"around.*is async, and the job is a plain function"):
        job(around=[noting_async("own")])(declare_nothing)
    with pytest.raises(DeclarationError, match="write @contextmanager"):
        job(around=[numbers])(declare_nothing)  # type: ignore[list-item]
    with pytest.raises(DeclarationError, match=r"client .* is async|one_more.* is async"):
        job(declare_partial)
    for wrong in ("text", [1], noting("own"), [lambda: nullcontext()]):
        with pytest.raises(DeclarationError, match=r"around=.*expected a list of functions"):
            job(around=wrong)(declare_nothing)  # type: ignore[arg-type]


@asynccontextmanager
async def late(context: JobContext) -> AsyncIterator[None]:
    yield


async def test_an_async_one_for_all_jobs_fails_plain_runs_clearly(taskflow_jobs: TaskflowJobs) -> None:
    configure(defaults={"around": [late], "max_attempts": 1})
    handle = await plain.delay(1)

    await taskflow_jobs.run_all(raises=False)

    with pytest.raises(JobFailed, match="late returned an async context manager, and the job is a plain function"):
        await handle.result(0)
