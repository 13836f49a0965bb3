"""Runs that are completed in their own transactions, with each kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, NamedTuple

import pytest

from taskflow import Backoff, JobContext, Worker, job
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.url import connect
from taskflow.model.errors import TaskflowError
from taskflow.model.record import Status
from taskflow.model.verdict import Completed
from taskflow.worker.events import CompletionRolledBack, RunEnded
from taskflow.worker.options import WorkerOptions
from tests.transactions.handles import ALL, POSTGRES, User, driven

TIMEOUT: Final = 20.0


class Way(NamedTuple):
    """What a run does, step by step, and the consequences. `a|b` is a in the first run, and b in the second."""

    steps: str
    orders: int = 1
    errors: tuple[str, ...] = ()
    verdicts: tuple[type, ...] | None = (Completed,)
    runs: int = 1


EVERYWHERE: Final = {
    "commit": Way("begin insert complete commit"),
    "rollback": Way("begin insert complete rollback|commit", errors=("taskflow.RolledBack",), verdicts=None, runs=2),
}
WAYS: Final = {
    **EVERYWHERE,
    "savepoint rolled back": Way("begin savepoint insert complete undo insert complete commit"),
    "raised after the commit": Way("begin insert complete commit fail"),
    "raised before the commit": Way("begin insert complete fail|commit", errors=("ValueError",), verdicts=None, runs=2),
    "completed in two transactions": Way("begin complete commit begin insert complete_again rollback", orders=0),
}
SOME: Final = ("asyncpg", "psycopg", "psycopg2", "SQLAlchemy AsyncSession, asyncpg", "Django, psycopg", "sqlite3", "aiosqlite")
"""How a run goes on depends on the broker, and on whether the connection is awaited, not on the framework."""


class Run:
    """One run, with one of the user's connections."""

    steps: ClassVar[list[str]]
    kind: ClassVar[str]
    place: ClassVar[str]

    def __init__(self, ctx: JobContext) -> None:
        self.ctx = ctx
        self.user = self.a_user()

    @classmethod
    def a_user(cls) -> User:
        return ALL[cls.kind](cls.place)

    async def play(self) -> str:
        await self.user.open()
        try:
            for step in self.steps:
                first, _, second = step.partition("|")
                name = second if second and self.ctx.attempt > 1 else first
                await (getattr(self, name, None) or getattr(self.user, name))()
        finally:
            await self.user.close()
        return "ignored"

    async def insert(self) -> None:
        await self.user.execute("INSERT INTO orders (number) VALUES (1)")

    async def complete(self) -> None:
        """A synchronous connection acts when called."""
        done = self.ctx.complete_in(self.user.connection, result="receipt")
        if self.user.is_awaited:
            await done

    async def complete_again(self) -> None:
        with pytest.raises(TaskflowError, match="the first one has committed"):
            await self.complete()

    async def fail(self) -> None:
        raise ValueError("too early or too late")


@job(name="tests.transactions.awaited", max_attempts=2, retry=Backoff(base=0.01))
async def awaited(ctx: JobContext) -> str:
    return await Run(ctx).play()


@job(name="tests.transactions.in_thread", max_attempts=2, retry=Backoff(base=0.01))
def in_thread(ctx: JobContext) -> str:
    return driven(Run(ctx).play())


async def alone(do: Callable[[User], Awaitable[Any]]) -> Any:
    """Use a connection outside of jobs. Django's connections refuse a thread with a loop."""
    user = Run.a_user()

    async def work() -> Any:
        await user.open()
        try:
            await user.begin()
            found = await do(user)
            await user.commit()
            return found
        finally:
            await user.close()

    return await work() if user.is_awaited else await asyncio.to_thread(driven, work())


@pytest.fixture
def place(request: pytest.FixtureRequest, kind: str) -> str:
    """Return the place of the user's database for this kind of connection."""
    return str(request.getfixturevalue("postgres_database" if kind in POSTGRES else "sqlite_file"))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in WAYS for kind in (ALL if name in EVERYWHERE else SOME)])
@pytest.mark.sampled(3)
async def test_a_run_is_completed_if_and_only_if_its_transaction_commits(place: str, name: str, kind: str) -> None:
    way = WAYS[name]
    Run.kind, Run.place, Run.steps = kind, place, way.steps.split()
    await alone(lambda user: user.execute("DELETE FROM orders"))
    events = list[Event]()
    broker = connect(place if kind in POSTGRES else f"sqlite:///{place}?shared=1")
    with default_app().using(broker):
        handle = await (awaited if Run.a_user().is_awaited else in_thread).delay()
        async with Worker(options=WorkerOptions(concurrency=2, subscribers=(events.append,))) as worker:
            await handle.result(TIMEOUT)
            record = await handle.info()
        await broker.close()

    assert record is not None
    assert (record.status, tuple(error.type for error in record.errors)) == (Status.SUCCEEDED, way.errors)
    assert await alone(lambda user: user.number("SELECT count(*) FROM orders WHERE number = 1")) == way.orders
    assert (worker.tally.runs, worker.tally.ended, worker.tally.failed) == (way.runs, 1, 0)
    if way.verdicts is not None:
        assert tuple(type(event.verdict) for event in events if isinstance(event, RunEnded)) == way.verdicts
    assert sum(isinstance(event, CompletionRolledBack) for event in events) == way.runs - 1
