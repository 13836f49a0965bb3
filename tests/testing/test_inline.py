"""Jobs that run where they are sent: in the sender's thread, loop and transaction, and otherwise as a worker runs them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import pytest

from taskflow import (
    Cancel,
    Discard,
    EncodeError,
    JobCancelled,
    JobContext,
    JobFailed,
    JobHandle,
    Retry,
    Snooze,
    Status,
    TaskflowJobs,
    configure,
    current_job,
    enqueue,
    enqueue_sync,
    job,
    run_sync,
)
from taskflow.model.ids import id_text
from taskflow.testing.jobs import jobs_in_memory
from taskflow.testing.runs import MAX_DEPTH
from tests.support.waiting import until_running


@dataclass
class Mail:
    to: str


ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@job(name="tests.inline.plain")
def plain(mail: Mail) -> str:
    ran.append((threading.current_thread(), mail))
    return f"to {mail.to}"


@job(name="tests.inline.awaits")
async def awaits(number: int) -> int:
    await asyncio.sleep(0)
    ran.append((threading.current_thread(), asyncio.get_running_loop()))
    return number + 1


@job(name="tests.inline.in_process", runs_in="process")
def in_process() -> str:
    return threading.current_thread().name


@job(name="tests.inline.flaky", max_attempts=4)
def flaky(ctx: JobContext, fails: int) -> str:
    ran.append((ctx.attempt, ctx.job_id))
    if ctx.attempt <= fails:
        raise OSError(f"attempt {ctx.attempt}")
    return f"attempt {ctx.attempt} of {ctx.max_attempts} of {current_job().job_name} in {ctx.queue}"


@job(name="tests.inline.flaky_async", max_attempts=3)
async def flaky_async(ctx: JobContext) -> int:
    if ctx.attempt < 3:
        raise Retry(after=3600)
    return ctx.attempt


@job(name="tests.inline.ends")
def ends(how: str) -> None:
    if how == "exits":
        raise SystemExit(3)
    if how == "stops iterating":
        raise StopIteration
    raise {"discards": Discard("no use"), "cancels": Cancel("no need"), "snoozes": Snooze(after=60)}[how]


@job(name="tests.inline.parent_async")
async def parent_async(name: str) -> str:
    handle = await plain.delay(Mail(name))
    number = await (await awaits.delay(1)).result(timeout=0)
    return f"{await handle.result(timeout=0)} {number}"


@job(name="tests.inline.grandparent")
def grandparent() -> str:
    return run_sync(parent_async.delay_sync("a").result(timeout=0))


@job(name="tests.inline.waits_for_another")
def waits_for_another() -> str:
    """The plain job cannot use this thread, which waits for it."""

    async def send_and_wait() -> str:
        return await (await plain.delay(Mail("b"))).result(timeout=0)

    return asyncio.run(send_and_wait())


@job(name="tests.inline.endless", max_attempts=3)
def endless(number: int) -> None:
    ran.append(number)
    endless.delay_sync(number + 1)


@job(name="tests.inline.endless_async")
async def endless_async(number: int) -> None:
    ran.append(number)
    await endless_async.delay(number + 1)


@job(name="tests.inline.fails", max_attempts=1)
def fails(message: str) -> None:
    raise ValueError(message)


@job(name="tests.inline.slow", timeout=0.05, max_attempts=1)
async def slow() -> None:
    await asyncio.sleep(60)


@job(name="tests.inline.stateful")
async def stateful(ctx: JobContext) -> str:
    return str(ctx.state)


# --- where it runs ---------------------------------------------------------------------------------------------------


def test_a_plain_function_runs_in_the_senders_thread(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        handle = plain.delay_sync(Mail("a"))
        assert ran == [(threading.current_thread(), Mail("a"))]
        assert run_sync(handle.result(timeout=0)) == "to a"
        assert run_sync(handle.status()) is Status.SUCCEEDED


def test_and_in_a_transaction(taskflow_jobs: TaskflowJobs) -> None:
    with closing(sqlite3.connect(":memory:")) as connection, taskflow_jobs.inline():
        enqueue_sync([plain.bind(Mail("a"))], connection=connection)
        plain.options(connection=connection).delay_sync(Mail("b"))
    assert ran == [(threading.current_thread(), Mail("a")), (threading.current_thread(), Mail("b"))]


def test_an_async_function_runs_in_a_loop_for_a_sender_without_one(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        assert run_sync(awaits.delay_sync(1).result(timeout=0)) == 2
    [(thread, _)] = ran
    assert thread is not threading.current_thread()


async def test_an_async_function_runs_in_the_senders_loop(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        handle = await awaits.delay(1)
        assert ran == [(threading.current_thread(), asyncio.get_running_loop())]
        assert await handle.result(timeout=0) == 2
        assert [await handle.result(timeout=0) for handle in await enqueue(awaits.bind(number) for number in range(3))] == [1, 2, 3]


def test_a_job_for_a_child_process_runs_here(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        assert run_sync(in_process.delay_sync().result(timeout=0)) == threading.current_thread().name


def test_jobs_wait_for_each_other_across_loops_and_threads(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        assert run_sync(grandparent.delay_sync().result(timeout=0)) == "to a 2"
        assert run_sync(waits_for_another.delay_sync().result(timeout=0)) == "to b"

        async def many() -> list[str]:
            return [await handle.result(timeout=0) for handle in await asyncio.gather(*(plain.delay(Mail(str(each))) for each in range(9)))]

        assert run_sync(many()) == [f"to {each}" for each in range(9)]


# --- how it runs -----------------------------------------------------------------------------------------------------


def test_arguments_are_encoded_and_decoded(taskflow_jobs: TaskflowJobs) -> None:
    mail = Mail("a")
    with taskflow_jobs.inline():
        plain.delay_sync(mail)
        with pytest.raises(EncodeError, match="mail"):
            plain.delay_sync("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    [(_, received)] = ran
    assert received == mail
    assert received is not mail


def test_retries_come_at_once(taskflow_jobs: TaskflowJobs) -> None:
    before = taskflow_jobs.now
    with taskflow_jobs.inline():
        handle = flaky.options(queue="mail").delay_sync(3)
        assert run_sync(handle.result(timeout=0)) == "attempt 4 of 4 of tests.inline.flaky in mail"
        assert run_sync(flaky_async.delay_sync().result(timeout=0)) == 3
    assert ran == [(attempt, handle.id) for attempt in range(1, 5)]
    info = run_sync(handle.info())
    assert info is not None
    assert (info.status, info.failures) == (Status.SUCCEEDED, 3)
    assert taskflow_jobs.now == before


def test_a_job_with_a_delay_waits_for_its_time(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        handle = plain.options(after=60).delay_sync(Mail("a"))
        assert ran == []
        taskflow_jobs.assert_enqueued(plain, Mail("a"))
        assert run_sync(taskflow_jobs.advance(minutes=1)) == 1
    assert run_sync(handle.result(timeout=0)) == "to a"


async def test_a_running_job_hears_that_it_is_cancelled(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        handles: list[JobHandle[None]] = []
        call = slow.options(timeout=None).bind()
        sending = asyncio.create_task(enqueue([call]))
        handle = JobHandle.of(id_text(call.envelope.id))
        async with asyncio.timeout(10):
            await until_running(handle)
            await handle.cancel()
            handles = await sending
        with pytest.raises(JobCancelled):
            await handles[0].result(timeout=0)


def test_the_lifespan_is_entered_for_each_send(taskflow_jobs: TaskflowJobs) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        ran.append("opened")
        yield "a pool"
        ran.append("closed")

    configure(lifespan=lifespan)
    with taskflow_jobs.inline():
        assert run_sync(stateful.delay_sync().result(timeout=0)) == "a pool"
    assert ran == ["opened", "closed"]


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_failure_is_raised_at_the_end_of_the_block_and_not_where_the_job_is_sent(taskflow_jobs: TaskflowJobs) -> None:
    reached = False
    with pytest.raises(JobFailed, match="ValueError: boom") as failure, taskflow_jobs.inline():  # noqa: PT012  # the block raises at its end
        handle = fails.delay_sync("boom")
        assert run_sync(handle.status()) is Status.FAILED
        reached = True
    assert reached
    assert isinstance(failure.value.__cause__, ValueError)


def test_an_error_of_the_block_names_the_failures(taskflow_jobs: TaskflowJobs) -> None:
    with pytest.raises(AssertionError) as failure, taskflow_jobs.inline():  # noqa: PT012  # the block raises at its end
        fails.delay_sync("boom")
        assert ran == ["something"]
    assert any("A job failed for good in this block: " in note and "boom" in note for note in failure.value.__notes__)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("discards", Status.FAILED),
        ("cancels", Status.CANCELLED),
        ("exits", Status.FAILED),
        ("stops iterating", Status.FAILED),
    ],
)
def test_a_job_ends_as_in_production(taskflow_jobs: TaskflowJobs, how: str, status: Status) -> None:
    with taskflow_jobs.inline(raises=False):
        assert run_sync(ends.delay_sync(how).status()) is status


@pytest.mark.parametrize("sender", [endless, endless_async])
def test_a_job_that_sends_itself_is_named(taskflow_jobs: TaskflowJobs, sender: Any) -> None:
    with pytest.raises(AssertionError, match=f"50 jobs run inside one another, and then {sender.name} was sent"), taskflow_jobs.inline():
        sender.delay_sync(1)
    assert ran == list(range(1, MAX_DEPTH + 1))


def test_ctrl_c_in_a_job_ends_the_test(taskflow_jobs: TaskflowJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(mail: Mail) -> None:
        ran.append(mail)
        raise KeyboardInterrupt

    monkeypatch.setattr(plain, "function", interrupted)
    with pytest.raises(KeyboardInterrupt), taskflow_jobs.inline():
        plain.delay_sync(Mail("a"))
    assert ran == [Mail("a")]
    assert run_sync(awaits.delay_sync(1).status()) is Status.READY


def test_blocks_may_lie_in_each_other(taskflow_jobs: TaskflowJobs) -> None:
    with taskflow_jobs.inline():
        with taskflow_jobs.inline(raises=False):
            fails.delay_sync("boom")
        plain.delay_sync(Mail("a"))
        assert len(ran) == 1
    plain.delay_sync(Mail("b"))
    assert len(ran) == 1


def test_it_works_without_pytest() -> None:
    with jobs_in_memory() as jobs, jobs.inline():
        assert run_sync(plain.delay_sync(Mail("a")).result(timeout=0)) == "to a"
