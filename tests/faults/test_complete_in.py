"""Runs that are completed in their transactions, while processes, connections and leases are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, Final

import asyncpg
import psycopg
import pytest

from taskflow import Backoff, BrokerUnavailable, JobContext, JobHandle, Worker, job
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.url import connect
from taskflow.model.errors import JobCancelled, LeaseLost
from taskflow.model.ids import parse_id
from taskflow.model.record import Status
from taskflow.model.verdict import Completed
from taskflow.worker.events import CompletionRolledBack, LeaseRevoked, RunEnded, SessionEnded, SettlementBlocked, VerdictIgnored
from taskflow.worker.options import WorkerOptions
from tests.cli.processes import Shell
from tests.faults.counting import each_is_counted_once, on_each_transactional_broker
from tests.support.postgres import of_this_version, shared_postgres

TIMEOUT: Final = 20.0


@on_each_transactional_broker
@pytest.mark.unmeasured
def test_each_increment_counts_once_while_workers_and_connections_are_killed(shell: Shell) -> None:
    each_is_counted_once(shell, 150, kills=2)


# --- one worker on PostgreSQL, and one run --------------------------------------------------------------------------

Script = Callable[["Run"], Awaitable[None]]


class Run:
    """A run with one of the user's connections, in a transaction that it commits at the end, unless the script does."""

    scripts: ClassVar[list[Script]]
    url: ClassVar[str]

    def __init__(self, ctx: JobContext, connection: psycopg.AsyncConnection[Any]) -> None:
        self.ctx = ctx
        self.connection = connection

    async def complete(self) -> None:
        await self.connection.execute("INSERT INTO effects VALUES (1)")
        await self.ctx.complete_in(self.connection)


@job(name="tests.complete_in.effect", max_attempts=5, retry=Backoff(base=0.01))
async def effect(ctx: JobContext) -> None:
    async with await psycopg.AsyncConnection.connect(Run.url) as connection:
        await Run.scripts.pop(0)(Run(ctx, connection))


async def at_once(run: Run) -> None:
    await run.complete()


class Scene:
    """A database with a worker. `events` are the worker's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.events: list[Event] = []
        self.between, self.go_on = asyncio.Event(), asyncio.Event()

    async def open_for_long(self, run: Run) -> None:
        await run.complete()
        await self.pause()

    async def pause(self) -> None:
        self.between.set()
        await self.go_on.wait()

    async def send(self, *scripts: Script) -> JobHandle[None]:
        Run.scripts, Run.url = list(scripts), self.url
        return await effect.delay()

    @asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[Worker]:
        options = {"concurrency": 2, "ttl": 2.0, "stop_timeout": 1.0, **options}
        async with Worker(options=WorkerOptions(subscribers=(self.events.append,), **options)) as worker:
            yield worker

    async def ask(self, sql: str, *arguments: object) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(sql, *arguments)
        finally:
            await connection.close()

    async def reap(self) -> None:
        """The new revision refuses a heartbeat that has read the session before, and would write it back as living."""
        await self.ask("UPDATE taskflow.sessions SET dead_at = beat_at, rev = -rev")

    async def effects(self) -> int:
        return int(await self.ask("SELECT count(*) FROM effects"))

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until_told(self, kind: type[Event]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not self.told(kind):  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.01)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    server = shared_postgres()
    database = of_this_version(server)
    server.execute("CREATE TABLE effects (n integer)", database)
    broker = connect(server.url(database))
    with default_app().using(broker):
        yield Scene(server.url(database))
    await broker.close()
    server.drop_database(database)


@pytest.mark.parametrize("winds_down", [False, True])
async def test_a_run_that_continues_after_its_commit_has_succeeded(scene: Scene, winds_down: bool) -> None:
    """The store tells the heartbeat that the lease is gone. The worker knows why, and does not stop the run. A worker that winds down then
    makes no difference."""

    async def script(run: Run) -> None:
        await run.complete()
        await run.connection.commit()
        await scene.pause()

    handle = await scene.send(script)
    async with scene.worker(ttl=0.4, grace=0.1 if winds_down else 5.0) as worker:
        await scene.between.wait()
        if not winds_down:
            await handle.result(TIMEOUT)
            await asyncio.sleep(0.5)
            scene.go_on.set()
            await scene.until_told(RunEnded)
            assert isinstance(scene.told(RunEnded)[0].verdict, Completed)
    assert scene.told(LeaseRevoked) == scene.told(VerdictIgnored) == scene.told(CompletionRolledBack) == []
    assert (worker.tally.ended, worker.tally.failed, await scene.effects()) == (1, 0, 1)
    assert await handle.status() is Status.SUCCEEDED


@pytest.mark.parametrize("commits", [True, False])
async def test_a_session_that_is_reaped_while_the_transaction_is_open(scene: Scene, commits: bool) -> None:
    """A commit takes effect. After a rollback the job runs again, and the first run's outcome does not count."""

    async def script(run: Run) -> None:
        await run.complete()
        with suppress(asyncio.CancelledError):
            await scene.pause()
        await (run.connection.commit() if commits else run.connection.rollback())

    handle = await scene.send(script, at_once)
    async with scene.worker():
        await scene.between.wait()
        await scene.reap()
        await scene.until_told(SessionEnded)
        await handle.result(TIMEOUT)
    assert len(Run.scripts) == (1 if commits else 0)
    assert (await handle.status(), await scene.effects()) == (Status.SUCCEEDED, 1)


async def test_a_run_that_has_lost_its_job_cannot_complete_it(scene: Scene) -> None:
    """It raises, so that its effect is rolled back; the other run's effect remains."""
    raised = list[BaseException]()

    async def script(run: Run) -> None:
        await scene.ask("UPDATE taskflow.jobs SET epoch = epoch + 1 WHERE id = $1", parse_id(run.ctx.job_id))
        try:
            await run.complete()
        except BaseException as error:
            raised.append(error)
            raise

    handle = await scene.send(script, at_once)
    async with scene.worker(ttl=0.6):
        await scene.until_told(VerdictIgnored)
        await scene.reap()
        await handle.result(TIMEOUT)
    assert [type(error) for error in raised] == [LeaseLost]
    assert await scene.effects() == 1


async def test_a_commit_whose_reply_is_lost(scene: Scene) -> None:
    """The run fails, as it must assume that the transaction is lost. The job has succeeded all the same."""

    async def script(run: Run) -> None:
        await run.complete()
        await run.connection.execute("COMMIT; SELECT pg_sleep(0.2), pg_terminate_backend(pg_backend_pid())")

    handle = await scene.send(script)
    async with scene.worker() as worker:
        await scene.until_told(RunEnded)
        await handle.result(TIMEOUT)
    assert (worker.tally.runs, worker.tally.ended, worker.tally.failed, await scene.effects()) == (1, 1, 0, 1)
    assert scene.told(CompletionRolledBack) == scene.told(VerdictIgnored) == []


async def test_a_connection_that_is_lost_before_the_commit(scene: Scene) -> None:
    """The run fails, and another one has the effect."""

    async def script(run: Run) -> None:
        await run.complete()
        await scene.ask("SELECT pg_terminate_backend($1)", run.connection.info.backend_pid)

    handle = await scene.send(script, at_once)
    async with scene.worker() as worker:
        await handle.result(TIMEOUT)
    assert (worker.tally.runs, worker.tally.ended, await scene.effects()) == (2, 1, 1)
    assert len(scene.told(CompletionRolledBack)) == 1


async def test_a_run_that_ends_while_its_transaction_is_open_is_settled_after_that(scene: Scene) -> None:
    """Its connection was passed on to other code, which commits later."""
    kept = list[psycopg.AsyncConnection[Any]]()

    async def script(run: Run) -> None:
        connection = await psycopg.AsyncConnection.connect(Run.url)
        kept.append(connection)
        await Run(run.ctx, connection).complete()

    handle = await scene.send(script)
    async with scene.worker() as worker:
        await scene.until_told(SettlementBlocked)
        assert await handle.status() is Status.RUNNING
        await kept[0].commit()
        await kept[0].close()
        await handle.result(TIMEOUT)
    assert (worker.tally.ended, worker.tally.failed, await scene.effects()) == (1, 0, 1)
    assert len(scene.told(SettlementBlocked)) == 1


async def test_a_cancellation_before_the_commit(scene: Scene) -> None:
    """It waits for the transaction no longer than for any lock. The commit takes effect."""
    handle = await scene.send(scene.open_for_long)
    async with scene.worker():
        await scene.between.wait()
        with pytest.raises(BrokerUnavailable):
            await handle.cancel()
        scene.go_on.set()
        await handle.result(TIMEOUT)
    assert await scene.effects() == 1


async def test_a_cancellation_before_the_completion(scene: Scene) -> None:
    """The run is stopped before its commit, and the job is cancelled."""

    async def script(run: Run) -> None:
        await scene.pause()
        await run.complete()

    handle = await scene.send(script)
    async with scene.worker():
        await scene.between.wait()
        await handle.cancel()
        with pytest.raises(JobCancelled):
            await handle.result(TIMEOUT)
    assert await scene.effects() == 0


async def test_a_timeout_between_the_completion_and_the_commit(scene: Scene) -> None:
    """The transaction rolls back as the run is stopped; that counts as the timeout."""
    Run.scripts, Run.url = [scene.open_for_long, at_once], scene.url
    handle = await effect.options(timeout=1.5).delay()  # the second run also connects within this time
    async with scene.worker():
        await handle.result(TIMEOUT)
        info = await handle.info()
    assert info is not None
    assert [error.type for error in info.errors] == ["TimeoutError"]
    assert await scene.effects() == 1


async def test_a_worker_that_winds_down_between_the_completion_and_the_commit(scene: Scene) -> None:
    """The run is stopped, its transaction rolls back, and the job is handed back to another worker."""
    handle = await scene.send(scene.open_for_long, at_once)
    async with scene.worker(grace=0.1):
        await scene.between.wait()
    assert await handle.status() is Status.READY
    async with scene.worker():
        await handle.result(TIMEOUT)
    assert await scene.effects() == 1
