"""Sending in transactions of PostgreSQL beside workers, other senders, poolers and outages."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import taskflow
from taskflow import BrokerRefused, JobHandle, Status, Worker, WrongConnection
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.support.pgbouncer import PgBouncer, is_there
from tests.support.postgres import shared_postgres
from tests.support.proxy import Proxy
from tests.support.waiting import until
from tests.transactions.handles import a_database
from tests.transactions.jobs import charge, note, ran


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
async def test_our_statement_is_the_first_of_a_session_that_rolls_back(
    broker_in_loop: Broker, postgres_database: str, is_warm: bool
) -> None:
    """SQLAlchemy's asyncpg dialect begins the transaction only with one of its own statements."""
    engine = create_async_engine(postgres_database.replace("postgresql", "postgresql+asyncpg"))
    if is_warm:
        async with AsyncSession(engine) as session:
            await charge.options(connection=session).delay(0)
    async with AsyncSession(engine) as session:
        handle = await charge.options(connection=session).delay(1)
        await session.rollback()
    assert await handle.status() is None
    async with AsyncSession(engine) as session, session.begin():
        handle = await charge.options(connection=session).delay(2)
    assert await handle.status() is Status.READY
    await engine.dispose()


async def test_eight_threads_with_sync_sessions_beside_a_running_loop(broker_in_loop: Broker, postgres_database: str) -> None:
    engine = create_engine(postgres_database.replace("postgresql", "postgresql+psycopg"))

    def send(thread: int) -> list[JobHandle[None]]:
        handles = []
        for number in range(20):
            with orm.Session(engine) as session:
                handles.append(charge.options(connection=session).delay_sync(thread))
                handles += taskflow.enqueue_sync([charge.bind(number)], connection=session)
                if number % 2:
                    session.commit()
        return handles

    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        sent = asyncio.gather(*(loop.run_in_executor(threads, send, thread) for thread in range(8)))
        beside = [await charge.delay(number) for number in range(100)]
        handles = [handle for some in await sent for handle in some]
    engine.dispose()
    statuses = [await handle.status() for handle in handles]
    assert statuses == [None, None, Status.READY, Status.READY] * (len(handles) // 4)
    assert len(handles) == 8 * 20 * 2
    assert len({handle.id for handle in [*handles, *beside]}) == len(handles) + 100


@pytest.mark.parametrize("has_key", [False, True], ids=["plain", "with a key"])
async def test_a_job_begins_as_soon_as_its_transaction_commits(broker_in_loop: Broker, postgres_database: str, has_key: bool) -> None:
    ran.clear()
    committed = dict[int, float]()
    connection = await asyncpg.connect(postgres_database)
    async with Worker(concurrency=10):
        for number in range(40):
            await asyncio.sleep(0.05)
            async with connection.transaction():
                within = note.options(connection=connection)
                await (within.options(key=f"begins {number}") if has_key else within).delay(number)
                await asyncio.sleep(0.02)
                assert number not in dict(ran)
            committed[number] = time.monotonic()
        await until(lambda: committed.keys() <= dict(ran).keys())
    await connection.close()
    assert statistics.median(when - committed[number] for number, when in ran) < 0.05


async def test_a_drain_runs_jobs_that_were_committed_with_a_key(postgres_database: str) -> None:
    """No worker has admitted it when the drain begins."""
    ran.clear()
    with a_database() as name:
        url = shared_postgres().url(name)
        with default_app().using(opened := connect(url)):
            connection = await asyncpg.connect(url)
            async with connection.transaction():
                for number in range(2):
                    await note.options(connection=connection, key=f"drain {number}").delay(number)
            async with Worker(concurrency=1) as worker:
                await worker.drained()
            await connection.close()
            await opened.close()
    assert sorted(number for number, _ in ran) == [0, 1]


@pytest.mark.parametrize(
    "begins", ["BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN; SET CONSTRAINTS ALL IMMEDIATE"]
)
async def test_isolation_and_constraints_lose_no_job(broker_in_loop: Broker, postgres_database: str, begins: str) -> None:
    """With immediate constraints a job may be found 10 s after the commit."""
    ran.clear()
    connection = await asyncpg.connect(postgres_database)
    async with Worker(concurrency=10):
        await connection.execute(begins)
        await note.options(connection=connection).delay(1)
        await taskflow.enqueue([note.bind(number) for number in range(2, 5)], connection=connection)
        await note.options(connection=connection, after=0.1).delay(5)
        await asyncio.sleep(2.0)  # meanwhile the low-water marks rise
        assert not ran
        await connection.execute("COMMIT")
        await until(lambda: set(range(1, 6)) <= dict(ran).keys())
    await connection.close()


async def test_a_lock_on_the_table_is_waited_for_as_long_as_the_user_says(broker_in_loop: Broker, postgres_database: str) -> None:
    """A limit of ours would make the user's transaction fail."""
    other, connection = await asyncpg.connect(postgres_database), await asyncpg.connect(postgres_database)
    await other.execute("BEGIN; LOCK TABLE taskflow.jobs IN EXCLUSIVE MODE")
    async with connection.transaction():
        sending = asyncio.create_task(charge.options(connection=connection).delay(1))
        assert not (await asyncio.wait([sending], timeout=3.5))[0]
        await other.execute("ROLLBACK")
        handle = await sending
    assert await handle.status() is Status.READY
    await other.close()
    await connection.close()


async def test_the_reply_of_the_commit_is_lost(postgres_database: str) -> None:
    """Whether or not the commit took effect, the job exists if and only if the user's row does."""
    server = shared_postgres()
    database = postgres_database.rpartition("/")[2]
    both, was_lost = list[bool](), list[bool]()
    broker = connect(postgres_database)
    with default_app().using(broker):
        for number in range(1_000_000, 1_000_012):
            with Proxy("127.0.0.1", server.port, parse=None) as proxy:
                url = proxy.url("postgresql", credentials="postgres", path=f"/{database}")
                connection = await asyncpg.connect(url)
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute("INSERT INTO orders (number) VALUES ($1)", number)
                handle = await charge.options(connection=connection).delay(number)
                proxy.latency = 0.0 if number % 2 else 0.05
                committing = asyncio.create_task(transaction.commit())
                await asyncio.sleep(0.0005 * (number % 6) if number % 2 else 0.01)
                proxy.cut_all()
                was_lost.append(False)
                try:
                    await committing
                except Exception:
                    was_lost[-1] = True
                connection.terminate()
            await asyncio.sleep(0.1)
            [(rows,)] = server.rows("SELECT count(*) FROM orders WHERE number = $1", number, database=database)
            both.append(rows == 1)
            assert (await handle.status() is Status.READY) is (rows == 1)
        await broker.close()
    assert {True, False} == {there for there, lost in zip(both, was_lost, strict=True) if lost}


@pytest.fixture
def roles() -> Iterator[tuple[str, str]]:
    """The URLs of a database for its owner and for a role with no rights."""
    server = shared_postgres()
    with a_database() as name:
        role = f"sender_of_{name}"
        server.execute(f"CREATE ROLE {role} LOGIN")
        server.execute(f"GRANT INSERT ON orders TO {role}", name)
        yield server.url(name), server.url(name, user=role)
        server.execute(f"DROP OWNED BY {role}", name)
        server.execute(f"DROP ROLE {role}")


async def test_usage_and_execute_are_enough_to_send(roles: tuple[str, str]) -> None:
    """They are enough for the connection and for the sender's broker."""
    owners, senders = roles
    role = senders.partition("//")[2].partition("@")[0]
    owner = connect(owners)
    await owner.read([bytes(16)])
    admin = await asyncpg.connect(owners)
    with default_app().using(owner):
        user = await asyncpg.connect(senders)
        for grant in (f"GRANT USAGE ON SCHEMA taskflow TO {role}", f"GRANT EXECUTE ON FUNCTION taskflow.enqueue_within(text) TO {role}"):
            async with user.transaction():
                await user.execute("INSERT INTO orders (number) VALUES ($1)", len(grant))
                with pytest.raises(WrongConnection, match=r"let the connection's role use it.*USAGE on the schema 'taskflow' and EXECUTE"):
                    await charge.options(connection=user).delay(1)
            await admin.execute(grant)
        async with user.transaction():
            first = await charge.options(connection=user).delay(1)
        assert await first.status() is Status.READY
    await owner.close()

    with default_app().using(sender := connect(senders)):
        async with user.transaction():
            handles = [await charge.options(connection=user, key="a").delay(2)]
            handles += await taskflow.enqueue([charge.bind(3), charge.bind(4)], connection=user)
        with pytest.raises(BrokerRefused, match="permission denied"):
            await handles[0].status()
        await sender.close()
    assert await admin.fetchval("SELECT count(*) FROM taskflow.jobs") == 4
    for forbidden in ("SELECT FROM taskflow.jobs", "SELECT taskflow.settle_within('{}')", "SELECT taskflow.enqueue(1, NULL)"):
        with pytest.raises(asyncpg.PostgresError):
            await user.execute(forbidden)
    await user.close()
    await admin.close()


@pytest.mark.parametrize("may_complete", [True, False])
async def test_the_documented_rights_of_a_worker_are_enough(roles: tuple[str, str], may_complete: bool) -> None:
    """They are a broker's rights, and EXECUTE on settle_within(). Without the latter the job is not completed, and the user's transaction
    goes on."""
    owners, workers = roles
    role, database = workers.partition("//")[2].partition("@")[0], owners.rpartition("/")[2]
    owner = connect(owners)
    await owner.read([bytes(16)])
    await owner.close()
    for grant in (
        "USAGE ON SCHEMA taskflow",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA taskflow",
        "USAGE ON ALL SEQUENCES IN SCHEMA taskflow",
        f"EXECUTE ON FUNCTION taskflow.{'settle' if may_complete else 'enqueue'}_within(text)",
    ):
        shared_postgres().execute(f"GRANT {grant} TO {role}", database)

    @taskflow.job(name="tests.transactions.complete_as_a_worker", max_attempts=1)
    async def complete(ctx: taskflow.JobContext) -> str:
        user = await asyncpg.connect(workers)
        async with user.transaction():
            if may_complete:
                await ctx.complete_in(user, result="done")
            else:
                with pytest.raises(WrongConnection, match=r"EXECUTE on its function settle_within\(text\)"):
                    await ctx.complete_in(user, result="done")
            await user.execute("INSERT INTO orders (number) VALUES (1)")
        await user.close()
        return "returned"

    with default_app().using(broker := connect(workers)):
        async with Worker(concurrency=1):
            assert await (await complete.delay()).result(20) == ("done" if may_complete else "returned")
        await broker.close()
    assert shared_postgres().rows("SELECT number FROM orders", database=database) == [(1,)]


@pytest.mark.skipif(
    not os.environ.get("CI") and not is_there(),
    reason="there is no pgbouncer on this machine: apt-get install pgbouncer (where CI is set, that is a failure)",
)
async def test_through_pgbouncer_in_transaction_mode() -> None:
    with a_database() as name, PgBouncer(shared_postgres(), pool_size=2) as bouncer:
        url = bouncer.url(name)
        broker = connect(f"{url}?pooled=1")
        with default_app().using(broker):
            handles = []
            connections = [await psycopg.AsyncConnection.connect(url, prepare_threshold=None) for _ in range(4)]
            for number in range(5):
                for connection in connections:
                    handles.append(await charge.options(connection=connection).delay(number))
                    await connection.execute("INSERT INTO orders (number) VALUES (%s)", [len(handles)])
                    await (connection.commit() if number % 2 else connection.rollback())
            assert [await handle.status() for handle in handles] == [*[None] * 4, *[Status.READY] * 4] * 2 + [None] * 4
            for connection in connections:
                await connection.close()
            await broker.close()
