"""Runs that are completed in a transaction of their own, with each kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

import pytest

from taskflow import Backoff, JobContext, JobInfo, Worker, job
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.model.errors import TaskflowError
from taskflow.model.record import Status
from taskflow.model.verdict import Completed
from taskflow.worker.events import CompletionRolledBack, RunEnded, WorkerEvent
from taskflow.worker.options import WorkerOptions
from tests.transactions.handles import ALL, POSTGRES, User, driven

TIMEOUT: Final = 20.0

on_some = pytest.mark.parametrize(
    "play", ["asyncpg", "psycopg", "psycopg2", "SQLAlchemy AsyncSession, asyncpg", "Django, psycopg", "sqlite3", "aiosqlite"], indirect=True
)
"""How a run goes on depends on the broker, and whether the connection is awaited, not on the framework."""

COUNT: Final = "SELECT count(*) FROM orders WHERE number = 1"


class Run:
    """One run, with a connection of the user's."""

    script: ClassVar[Callable[[Run], Awaitable[None]]]
    kind: ClassVar[str]
    place: ClassVar[str]

    def __init__(self, ctx: JobContext) -> None:
        self.ctx = ctx
        self.user = self.a_user()

    @classmethod
    def a_user(cls) -> User:
        return ALL[cls.kind](cls.place)

    @property
    def is_first(self) -> bool:
        return self.ctx.attempt == 1

    async def play(self) -> str:
        await self.user.open()
        try:
            await type(self).script(self)
        finally:
            await self.user.close()
        return "ignored"

    async def insert(self) -> None:
        await self.user.execute("INSERT INTO orders (number) VALUES (1)")

    async def complete(self, result: object = "receipt") -> None:
        """A synchronous connection acts when called."""
        done = self.ctx.complete_in(self.user.connection, result=result)
        if self.user.is_awaited:
            await done


@job(name="tests.transactions.awaited", max_attempts=2, retry=Backoff(base=0.01))
async def awaited(ctx: JobContext) -> str:
    return await Run(ctx).play()


@job(name="tests.transactions.in_thread", max_attempts=2, retry=Backoff(base=0.01))
def in_thread(ctx: JobContext) -> str:
    return driven(Run(ctx).play())


class Outcome:
    def __init__(self, record: JobInfo, orders: int, events: list[WorkerEvent], worker: Worker) -> None:
        self.status = record.status
        self.errors = [error.type for error in record.errors]
        self.orders = orders
        self.verdicts = [type(event.verdict) for event in events if isinstance(event, RunEnded)]
        self.instead = [event.instead for event in events if isinstance(event, CompletionRolledBack)]
        self.counts = (worker.tally.runs, worker.tally.ended, worker.tally.failed)


Play = Callable[[Callable[[Run], Awaitable[None]]], Awaitable[Outcome]]


@pytest.fixture(params=ALL)
def play(request: pytest.FixtureRequest) -> Play:
    """Plays a script as the run of a job, with each kind of connection, until the job has ended."""
    is_postgres = request.param in POSTGRES
    place = str(request.getfixturevalue("postgres_database" if is_postgres else "sqlite_file"))
    Run.kind, Run.place = request.param, place

    async def play(script: Callable[[Run], Awaitable[None]]) -> Outcome:
        broker = connect(place if is_postgres else f"sqlite:///{place}?shared=1")
        try:
            with default_app().using(broker):
                return await run(script)
        finally:
            await broker.close()

    async def run(script: Callable[[Run], Awaitable[None]]) -> Outcome:
        Run.script = staticmethod(script)
        await alone("DELETE FROM orders")
        handle = await (awaited if Run.a_user().is_awaited else in_thread).delay()
        events = list[WorkerEvent]()
        async with Worker(options=WorkerOptions(concurrency=2, subscribers=(events.append,))) as worker:
            await handle.result(TIMEOUT)
            record = await handle.info()
        assert record is not None
        return Outcome(record, await alone(None), events, worker)

    return play


async def alone(sql: str | None) -> Any:
    """Run a statement outside of jobs, or count the rows that the runs have inserted. Django's connections refuse a thread with a loop."""
    user = Run.a_user()

    async def work() -> Any:
        await user.open()
        try:
            await user.begin()
            if sql is None:
                return await user.number(COUNT)
            await user.execute(sql)
            await user.commit()
        finally:
            await user.close()

    return await work() if user.is_awaited else await asyncio.to_thread(driven, work())


async def test_commit(play: Play) -> None:
    async def script(run: Run) -> None:
        await run.user.begin()
        await run.insert()
        await run.complete()
        await run.user.commit()

    outcome = await play(script)

    assert (outcome.status, outcome.orders, outcome.errors) == (Status.SUCCEEDED, 1, [])
    assert (outcome.verdicts, outcome.instead, outcome.counts) == ([Completed], [], (1, 1, 0))


async def test_rollback(play: Play) -> None:
    async def script(run: Run) -> None:
        await run.user.begin()
        await run.insert()
        await run.complete()
        await (run.user.rollback() if run.is_first else run.user.commit())

    outcome = await play(script)

    assert (outcome.status, outcome.orders, outcome.errors) == (Status.SUCCEEDED, 1, ["taskflow.RolledBack"])
    assert len(outcome.instead) == 1
    assert outcome.counts == (2, 1, 0)


@on_some
async def test_savepoint_rolled_back(play: Play) -> None:
    async def script(run: Run) -> None:
        await run.user.begin()
        await run.user.savepoint()
        await run.insert()
        await run.complete("lost")
        await run.user.undo()
        await run.insert()
        await run.complete()
        await run.user.commit()

    outcome = await play(script)

    assert (outcome.status, outcome.orders, outcome.verdicts) == (Status.SUCCEEDED, 1, [Completed])


@on_some
async def test_raised_after_the_commit(play: Play) -> None:
    async def script(run: Run) -> None:
        await run.user.begin()
        await run.insert()
        await run.complete()
        await run.user.commit()
        raise ValueError("too late")

    outcome = await play(script)

    assert (outcome.status, outcome.orders, outcome.errors) == (Status.SUCCEEDED, 1, [])
    assert (outcome.verdicts, outcome.instead, outcome.counts) == ([Completed], [], (1, 1, 0))


@on_some
async def test_raised_before_the_commit(play: Play) -> None:
    async def script(run: Run) -> None:
        await run.user.begin()
        await run.insert()
        await run.complete()
        if run.is_first:
            raise ValueError("too early")
        await run.user.commit()

    outcome = await play(script)

    assert (outcome.status, outcome.orders, outcome.errors) == (Status.SUCCEEDED, 1, ["ValueError"])


@on_some
async def test_completed_in_two_transactions(play: Play) -> None:
    async def script(run: Run) -> None:
        await run.user.begin()
        await run.complete()
        await run.user.commit()
        await run.user.begin()
        await run.insert()
        with pytest.raises(TaskflowError, match="the first one has committed"):
            await run.complete()
        await run.user.rollback()

    outcome = await play(script)

    assert (outcome.status, outcome.orders, outcome.verdicts) == (Status.SUCCEEDED, 0, [Completed])
