"""Runs that are completed in a transaction, wherever their function runs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from taskflow import JobContext, JobFailed, JobHandle, Middleware, RunNext, TaskflowError, Verdict, Worker, configure, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.url import connect
from taskflow.model.verdict import Completed
from tests.cli.processes import Shell
from tests.worker.scene import EventRecorder, options

TIMEOUT: Final = 20.0


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as opened:
        yield opened


class User:
    """The user's file, which is also the broker's, and the contexts of runs."""

    file: ClassVar[Path]
    contexts: ClassVar[list[JobContext]]
    causes: ClassVar[list[str | None]]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[None]:
    User.file, User.contexts, User.causes = tmp_path / "app.db", [], []
    with closing(sqlite3.connect(User.file)) as connection:
        connection.execute("CREATE TABLE effects (n integer)")
    opened = connect(f"sqlite:///{User.file}?shared=1")
    with default_app().using(opened):
        yield
    await opened.close()


def an_effect(ctx: JobContext) -> None:
    with closing(sqlite3.connect(User.file)) as connection, connection:
        connection.execute("INSERT INTO effects VALUES (1)")
        ctx.complete_in(connection, result="receipt")


@job(name="tests.complete.in_loop", max_attempts=1)
async def in_loop(ctx: JobContext) -> str:
    """The connection is synchronous, so the call takes effect at once, and need not be awaited."""
    User.contexts.append(ctx)
    an_effect(ctx)
    return "ignored"


@job(name="tests.complete.in_thread", max_attempts=1, keep_arguments=True)
def in_thread(ctx: JobContext) -> str:
    an_effect(ctx)
    return "ignored"


class Awaited:
    """A connection of a driver that is used with `await`."""

    async def run_statement(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        raise AssertionError("no statement runs")


@job(name="tests.complete.wrong_thread", max_attempts=1)
def wrong_thread(ctx: JobContext) -> None:
    ctx.complete_in(Awaited())


@job(name="tests.complete.wrong_result", max_attempts=1)
async def wrong_result(ctx: JobContext) -> str:
    with closing(sqlite3.connect(User.file)) as connection, connection:
        connection.execute("INSERT INTO effects VALUES (1)")
        await ctx.complete_in(connection)
    return ""


async def failure_of(handle: JobHandle[Any]) -> JobFailed:
    async with Worker(options=options(EventRecorder(), concurrency=2)):
        with pytest.raises(JobFailed) as caught:
            await handle.result(TIMEOUT)
    return caught.value


@pytest.mark.parametrize(("which", "kept"), [(in_loop, None), (in_thread, {})], ids=["in the loop", "in a thread"])
async def test_a_synchronous_connection_acts_when_called(broker: None, which: Any, kept: object) -> None:
    handle = await which.delay()
    async with Worker(options=options(EventRecorder(), concurrency=2)):
        assert await handle.result(TIMEOUT) == "receipt"
    info = await handle.info()
    assert info is not None
    assert info.arguments == kept


async def test_a_plain_function_cannot_use_a_connection_that_is_awaited(broker: None) -> None:
    failure = await failure_of(await wrong_thread.delay())
    assert (failure.type, "make the job an async function" in failure.message) == ("TypeError", True)


async def test_a_result_of_the_wrong_type_is_refused_before_anything_is_settled(broker: None) -> None:
    failure = await failure_of(await wrong_result.delay())
    assert failure.type == "taskflow.EncodeError"
    with closing(sqlite3.connect(User.file)) as connection:
        assert connection.execute("SELECT count(*) FROM effects").fetchone() == (0,)


async def test_a_broker_that_cannot_join_a_transaction_says_so(broker: None) -> None:
    with default_app().using(MemoryBroker()):
        failure = await failure_of(await in_thread.delay())
    assert failure.type == "taskflow.ConfigurationError"
    assert "complete_in() needs a broker in the same database, PostgreSQL or SQLite, but this broker is" in failure.message
    assert "connection=" not in failure.message


@job(name="tests.complete.restores")
async def restores(ctx: JobContext) -> None:
    User.causes.append(ctx.caused_by)


@job(name="tests.complete.fails_afterwards", max_attempts=1)
async def fails_afterwards(ctx: JobContext, commits: bool) -> None:
    with closing(sqlite3.connect(User.file)) as connection:
        connection.execute("INSERT INTO effects VALUES (1)")
        ctx.complete_in(connection)
        (connection.commit if commits else connection.rollback)()
    raise ValueError("afterwards")


async def test_a_completion_that_rolled_back_is_a_failure_with_its_follow_up(broker: None) -> None:
    """One that committed has succeeded, and sends nothing, whatever the run does afterwards."""
    followed = fails_afterwards.options(on_failure=restores.bind())
    failed, succeeded = await followed.delay(False), await followed.delay(True)
    async with Worker(options=options(EventRecorder(), concurrency=2)) as worker:
        with pytest.raises(JobFailed, match="afterwards"):
            await failed.result(TIMEOUT)
        await succeeded.result(TIMEOUT)
        await worker.drained()
    assert User.causes == [failed.id]


async def test_a_run_that_has_ended_cannot_be_completed(broker: None) -> None:
    handle = await in_loop.delay()
    async with Worker(options=options(EventRecorder(), concurrency=2)):
        await handle.result(TIMEOUT)
        await asyncio.sleep(0.05)  # the worker learns of the end later than the waiting caller
        with closing(sqlite3.connect(User.file)) as connection, pytest.raises(TaskflowError, match="after the run had ended"):
            User.contexts[0].complete_in(connection, result="late")


class Watching(Middleware):
    seen: ClassVar[list[Verdict]]

    async def run(self, context: JobContext, call_next: RunNext) -> Verdict:
        self.seen.append(verdict := await call_next(context))
        return verdict


async def test_middleware_sees_that_a_run_was_completed(broker: None) -> None:
    Watching.seen = []
    configure(middleware=[Watching()])
    handle = await in_thread.delay()
    async with Worker(options=options(EventRecorder(), concurrency=2)):
        await handle.result(TIMEOUT)
    [verdict] = Watching.seen
    assert isinstance(verdict, Completed)
    assert verdict.is_final


# --- in child processes ---------------------------------------------------------------------------------------------

TASKS: Final = """
import asyncio, os, sqlite3, time
from taskflow import Backoff, JobContext, job

def effect(ctx: JobContext, how: str) -> None:
    connection = sqlite3.connect("app.db")
    connection.execute("INSERT INTO effects VALUES (?)", (how,))
    ctx.complete_in(connection, result=how)
    if how == "rolls back" and ctx.attempt == 1:
        connection.rollback()
        return
    connection.commit()
    if how == "dies":
        os._exit(3)
    if how == "raises":
        raise ValueError(how)
    if how == "outlives heartbeats":
        time.sleep(1.5)
    with open("ledger", "a") as ledger:
        print(how, file=ledger)

@job(runs_in="process", max_attempts=2, retry=Backoff(base=0))
def plain(ctx: JobContext, how: str) -> str:
    effect(ctx, how)
    return "ignored"

@job(runs_in="process", max_attempts=2, retry=Backoff(base=0))
async def awaited(ctx: JobContext, how: str) -> str:
    effect(ctx, how)
    return "ignored"
"""


@pytest.mark.parametrize("how", ["returns", "rolls back", "dies", "raises", "outlives heartbeats"])
def test_a_child_completes_its_run(shell: Shell, how: str) -> None:
    """This holds whatever happens to the child after the commit."""
    shell.environment["TASKFLOW_BROKER"] = "sqlite:///app.db?shared=1"
    shell.write("tasks.py", TASKS)
    with closing(sqlite3.connect(shell.folder / "app.db")) as connection:
        connection.execute("CREATE TABLE effects (how text)")
    shell.send(f"plain.bind({how!r})", f"awaited.bind({how!r})")
    said = shell.run("-m", "taskflow", "worker", "tasks", "--drain", "--ttl", "1")
    with closing(sqlite3.connect(shell.folder / "app.db")) as connection:
        assert connection.execute("SELECT how, count(*) FROM effects GROUP BY how").fetchall() == [(how, 2)]
    assert shell.counts() == {"succeeded": 2}, said
    assert shell.ledger() == ([] if how in ("dies", "raises") else [how] * 2)
    assert "lost its lease" not in said
    assert said.count("transaction that was rolled back") == (2 if how == "rolls back" else 0)
