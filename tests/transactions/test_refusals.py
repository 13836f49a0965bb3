"""Connections that cannot carry a job. Each is refused with the reason, and the user's transaction goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import taskflow
from taskflow import ConfigurationError, JobHandle, KeyConflict, Status, StoreFull, UnknownJob, WrongConnection, run_sync
from taskflow.app.app import default_app
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.support.postgres import shared_postgres
from tests.transactions.handles import TABLE
from tests.transactions.jobs import admit, charge, refund


@pytest.fixture
def broker(postgres_database: str) -> Iterator[Broker]:
    """The default broker of sends without an event loop."""
    broker = connect(postgres_database)
    with default_app().using(broker):
        yield broker
    run_sync(broker.close())


@pytest.fixture
def user(postgres_database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_database) as connection:
        yield connection
        if not connection.closed:
            connection.rollback()


def assert_alive(user: psycopg.Connection) -> None:
    """The transaction has what it had, and can be committed."""
    assert user.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    handle = charge.options(connection=user).delay_sync(1)
    user.commit()
    assert run_sync(handle.status()) is Status.READY


# --- declared keys ---------------------------------------------------------------------------------------------------


def test_a_declared_key_holds_inside_a_transaction_and_is_found_after_it(broker: Broker, user: psycopg.Connection) -> None:
    within = refund.options(connection=user)
    first = within.delay_sync(7)
    again = within.options(queue="other").delay_sync(7)
    [third, other] = taskflow.enqueue_sync([refund.bind(7), refund.bind(8)], connection=user)
    assert (again, third) == (first, first)
    assert [handle.is_new for handle in (first, again, third, other)] == [True, False, False, True]
    assert run_sync(refund.live("7")) is None
    user.commit()
    run_sync(admit())
    assert run_sync(refund.live("7")) == first
    assert not refund.delay_sync(8).is_new


# --- what is no connection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ("postgresql://localhost", r"connection= got a builtins\.str: expected a connection or session of asyncpg, psycopg"),
        (42, "expected a connection"),
        (sqlalchemy.create_engine("sqlite://"), r"with engine\.begin\(\) as connection"),
        (orm.sessionmaker(), "give a session made by it"),
        (sqlite3.Connection, "expected a connection"),
    ],
    ids=["text", "number", "engine", "sessionmaker", "class"],
)
def test_what_is_no_connection_is_refused_when_it_is_given(given: Any, cure: str) -> None:
    with pytest.raises(TypeError, match=cure):
        charge.options(connection=given)
    with pytest.raises(TypeError, match=cure):
        taskflow.enqueue_sync([charge.bind(1)], connection=given)


def test_a_cursor_is_no_connection(user: psycopg.Connection) -> None:
    given: Any = user.cursor()
    with pytest.raises(TypeError, match=r"connection= got a psycopg\.Cursor: give its connection"):
        charge.options(connection=given)


def test_a_call_keeps_no_connection(user: psycopg.Connection) -> None:
    with pytest.raises(TypeError, match=r"give it to enqueue\(calls, connection=\.\.\.\)"):
        charge.options(connection=user).bind(1)


def test_a_declaration_takes_no_connection(user: psycopg.Connection) -> None:
    with pytest.raises(TypeError, match="connection"):
        taskflow.job(name="never", connection=user)(lambda: None)  # type: ignore[call-overload]


# --- closed, in no transaction, of another thread ---------------------------------------------------------------------


def test_a_closed_connection(broker: Broker, user: psycopg.Connection) -> None:
    user.close()
    with pytest.raises(WrongConnection, match="the connection is closed"):
        charge.options(connection=user).delay_sync(1)


@pytest.mark.parametrize("module", [psycopg, psycopg2], ids=["psycopg", "psycopg2"])
def test_a_connection_in_autocommit_mode(broker: Broker, postgres_database: str, module: Any) -> None:
    connection = module.connect(postgres_database)
    connection.autocommit = True
    with pytest.raises(WrongConnection, match="is not in a transaction"):
        charge.options(connection=connection).delay_sync(1)
    connection.close()


def test_an_engine_in_autocommit_mode(broker: Broker, postgres_database: str) -> None:
    url = postgres_database.replace("postgresql", "postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(WrongConnection, match="AUTOCOMMIT"):
        charge.options(connection=connection).delay_sync(1)
    engine.dispose()


async def test_asyncpg_outside_a_transaction(postgres_database: str) -> None:
    broker = connect(postgres_database)
    connection = await asyncpg.connect(postgres_database)
    with default_app().using(broker), pytest.raises(WrongConnection, match=r"connection\.transaction\(\)"):
        await charge.options(connection=connection).delay(1)
    await connection.close()
    await broker.close()


async def test_a_connection_that_was_given_back_to_its_pool(postgres_database: str) -> None:
    broker = connect(postgres_database)
    async with asyncpg.create_pool(postgres_database, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            pass
        with default_app().using(broker), pytest.raises(WrongConnection, match="given back to its pool"):
            await charge.options(connection=connection).delay(1)
    await broker.close()


def test_an_awaited_connection_in_code_without_a_loop(broker: Broker) -> None:
    connection = AsyncSession()
    with pytest.raises(TypeError, match=r"an? AsyncSession is used with `await`, so send with `await \.delay\(\)`"):
        charge.options(connection=connection).delay_sync(1)


# --- another database ------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another database, with a table of the user's."""
    server = shared_postgres()
    name = server.new_database()
    server.execute(TABLE, name)
    yield server.url(name)
    server.drop_database(name)


def test_a_database_without_a_store(broker: Broker, elsewhere: str) -> None:
    with psycopg.connect(elsewhere) as connection:
        connection.execute("INSERT INTO orders (number) VALUES (1)")
        with pytest.raises(WrongConnection, match="the database of the connection has no store there"):
            charge.options(connection=connection).delay_sync(1)
        connection.commit()
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_the_same_schema_in_another_database(broker: Broker, elsewhere: str) -> None:
    other = connect(elsewhere)
    run_sync(other.read([bytes(16)]))  # makes the schema
    run_sync(other.close())
    with psycopg.connect(elsewhere) as connection:
        connection.execute("INSERT INTO orders (number) VALUES (1)")
        for _ in range(2):
            with pytest.raises(WrongConnection, match="another database than the broker's"):
                charge.options(connection=connection).delay_sync(1)
        connection.commit()
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_a_copy_of_the_database_is_another_one(broker: Broker, postgres_database: str) -> None:
    run_sync(broker.read([bytes(16)]))
    run_sync(broker.close())
    server = shared_postgres()
    copy = server.new_database(template=postgres_database.rpartition("/")[2])
    with default_app().using(opened := connect(postgres_database)), psycopg.connect(server.url(copy)) as connection:
        with pytest.raises(WrongConnection, match="another database than the broker's"):
            charge.options(connection=connection).delay_sync(1)
        run_sync(opened.close())
    server.drop_database(copy)


def test_a_store_that_was_made_anew(postgres_database: str, user: psycopg.Connection) -> None:
    """The broker learns the new one's name with the next connection; known ones are to the same database as before."""
    broker = connect(f"{postgres_database}?namespace=anew")
    with default_app().using(broker):
        charge.options(connection=user).delay_sync(1)
        user.rollback()
        user.execute('DROP SCHEMA "anew" CASCADE')
        user.commit()
        run_sync(broker.read([bytes(16)]))
        handles = [charge.options(connection=user).delay_sync(1)]
        with psycopg.connect(postgres_database) as other:
            with pytest.raises(WrongConnection):
                charge.options(connection=other).delay_sync(1)
            handles.append(charge.options(connection=other).delay_sync(1))
        user.commit()
        assert [run_sync(handle.status()) for handle in handles] == [Status.READY] * 2
    run_sync(broker.close())


def test_a_connection_of_another_kind(broker: Broker, user: psycopg.Connection, tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as other,
        pytest.raises(
            WrongConnection, match="the connection is to a SQLite database, but the broker is PostgreSQL, the schema 'taskflow' at"
        ),
    ):
        charge.options(connection=other).delay_sync(1)
    with default_app().using(opened := connect(f"sqlite:///{tmp_path}/app.db")):
        user.execute("SELECT 1")
        with pytest.raises(WrongConnection, match="the connection is to a PostgreSQL database, but the broker is"):
            charge.options(connection=user).delay_sync(1)
        run_sync(opened.close())


def test_another_file_is_left_as_it_was(tmp_path: Path) -> None:
    """Not even locked."""
    with default_app().using(opened := connect(f"sqlite:///{tmp_path}/app.db")), closing(sqlite3.connect(tmp_path / "other.db")) as other:
        with pytest.raises(WrongConnection, match=r"other\.db, but the broker uses .*app\.db"):
            charge.options(connection=other).delay_sync(1)
        assert not other.in_transaction
        with closing(sqlite3.connect(tmp_path / "other.db", timeout=0)) as writer:
            writer.execute("CREATE TABLE here (number integer)")
        run_sync(opened.close())


def test_a_broker_that_has_no_transactions(user: psycopg.Connection) -> None:
    with (
        default_app().using(connect("memory://")),
        pytest.raises(ConfigurationError, match=r"^connection= needs .* PostgreSQL or SQLite, but this broker is"),
    ):
        charge.options(connection=user).delay_sync(1)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_that_another_open_transaction_has_sent_with(broker: Broker, user: psycopg.Connection, postgres_database: str) -> None:
    """Nobody waits for it. After the commits one of the jobs has the key."""
    keyed = charge.options(key="busy")
    with psycopg.connect(postgres_database) as other:
        first = keyed.options(connection=other).delay_sync(1)
        second = keyed.options(connection=user).delay_sync(2)
        user.commit()
        other.commit()
    run_sync(admit())
    assert [run_sync(handle.status()) for handle in (first, second)] == [Status.READY, Status.CANCELLED]
    info = run_sync(second.info())
    assert info is not None
    assert info.reason == f"key held by {first.id}"
    run_sync(first.cancel())


def test_a_key_sent_with_in_a_savepoint_that_is_rolled_back(broker: Broker, user: psycopg.Connection, postgres_database: str) -> None:
    keyed = charge.options(key="savepoint")
    user.execute("SAVEPOINT here")
    lost = keyed.options(connection=user).delay_sync(1)
    user.execute("ROLLBACK TO SAVEPOINT here")
    handle = keyed.options(connection=user).delay_sync(2)
    assert handle.is_new
    user.commit()
    run_sync(admit())
    assert [run_sync(each.status()) for each in (lost, handle)] == [None, Status.READY]
    run_sync(handle.cancel())


def test_keys_within_a_transaction(broker: Broker, user: psycopg.Connection) -> None:
    keyed = charge.options(key="within", connection=user)
    first, second = keyed.delay_sync(1), keyed.delay_sync(2)
    assert (first.is_new, second.is_new, second.id) == (True, False, first.id)
    with pytest.raises(KeyConflict) as raised:
        keyed.options(on_conflict="raise").delay_sync(3)
    assert raised.value.job_id == first.id
    third = keyed.options(on_conflict="replace").delay_sync(4)
    user.commit()
    run_sync(admit())
    assert [run_sync(handle.status()) for handle in (first, third)] == [Status.CANCELLED, Status.READY]
    run_sync(third.cancel())


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_a_key_that_was_taken_since_the_transaction_began(broker: Broker, user: psycopg.Connection, level: psycopg.IsolationLevel) -> None:
    """At this isolation level the transaction does not see the job that has the key."""
    user.isolation_level = level
    user.execute("SELECT 1 FROM orders")
    keyed = charge.options(key=f"since {level}")
    standing = run_sync(keyed.delay(1))
    late = keyed.options(connection=user).delay_sync(2)
    user.commit()
    run_sync(admit())
    assert [run_sync(handle.status()) for handle in (standing, late)] == [Status.READY, Status.CANCELLED]
    run_sync(standing.cancel())


@pytest.mark.parametrize("on_conflict", ["keep", "replace", "raise"])
@pytest.mark.parametrize("ends", ["cancelled", "replaced"])
def test_a_key_whose_job_has_ended_since_the_transaction_began(
    broker: Broker, user: psycopg.Connection, on_conflict: Literal["keep", "replace", "raise"], ends: str
) -> None:
    """At this isolation level the transaction still sees the job that has ended: kept, that would be a lost job."""
    keyed = charge.options(key=f"ended {on_conflict} {ends}")
    standing = run_sync(keyed.delay(1))
    user.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    user.execute("SELECT 1 FROM orders")
    later = run_sync(standing.cancel()) if ends == "cancelled" else run_sync(keyed.options(on_conflict="replace").delay(2))
    sent = keyed.options(on_conflict=on_conflict, connection=user).delay_sync(3)
    assert sent.is_new
    user.commit()
    run_sync(admit())
    comes_too_late = ends == "replaced" and on_conflict != "replace"
    assert run_sync(sent.status()) is (Status.CANCELLED if comes_too_late else Status.READY)
    run_sync((later if comes_too_late and isinstance(later, JobHandle) else sent).cancel())


def test_a_key_whose_job_lives_on_at_repeatable_read(broker: Broker, user: psycopg.Connection) -> None:
    keyed = charge.options(key="lives on")
    standing = run_sync(keyed.delay(1))
    user.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    user.execute("SELECT 1 FROM orders")
    assert keyed.options(connection=user).delay_sync(2) == standing
    with pytest.raises(KeyConflict):
        keyed.options(on_conflict="raise", connection=user).delay_sync(3)
    run_sync(standing.cancel())  # the transaction holds no lock of it


def test_more_keys_than_the_server_has_locks_for(broker: Broker, user: psycopg.Connection) -> None:
    [(most,)] = user.execute("SELECT current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int / 4")
    handles = taskflow.enqueue_sync((charge.options(key=f"many {number}").bind(number) for number in range(2 * most)), connection=user)
    assert all(handle.is_new for handle in handles)
    assert not charge.options(key="many 0", connection=user).delay_sync(1).is_new
    user.rollback()


def test_a_full_store(postgres_database: str, user: psycopg.Connection) -> None:
    server = shared_postgres()
    broker = PostgresBroker(connect(postgres_database).server, namespace="full", capacity=3)  # type: ignore[attr-defined]
    with default_app().using(broker):
        taskflow.enqueue_sync([charge.bind(each) for each in range(3)], connection=user)
        with pytest.raises(StoreFull, match="at most 3 live jobs"):
            charge.options(connection=user).delay_sync(4)
        user.commit()
    run_sync(broker.close())
    assert server.rows('SELECT count(*) FROM "full".jobs', database=postgres_database.rpartition("/")[2]) == [(3,)]


# --- handles, middleware ---------------------------------------------------------------------------------------------


def test_a_handle_before_the_commit(broker: Broker, user: psycopg.Connection) -> None:
    handle = charge.options(connection=user).delay_sync(1)
    assert run_sync(handle.info()) is None
    with pytest.raises(UnknownJob, match="the transaction in which it was sent has not committed, or was rolled back"):
        run_sync(handle.result(timeout=5))
    user.rollback()


class Stamps(taskflow.Middleware):
    def __init__(self) -> None:
        self.threads = list[str]()

    async def enqueue(self, call: taskflow.EnqueueCall, call_next: taskflow.EnqueueNext) -> None:
        call.headers["stamp"] = "here"
        await asyncio.sleep(0.01)
        await call_next(call)
        self.threads.append(threading.current_thread().name)


def test_middleware_of_a_sender_without_a_loop(broker: Broker, user: psycopg.Connection) -> None:
    """It runs in the portal, the statement in the caller's thread."""
    stamps = Stamps()
    with default_app().using(broker):
        taskflow.configure(middleware=[stamps])
        handle = charge.options(connection=user).delay_sync(1)
        [many] = taskflow.enqueue_sync([charge.bind(2)], connection=user)
        user.commit()
        for each in (handle, many):
            info = run_sync(each.info())
            assert info is not None
            assert info.headers == {"stamp": "here"}
    assert stamps.threads == ["taskflow-portal"] * 2


async def test_middleware_of_a_sender_in_a_loop(postgres_database: str) -> None:
    broker = connect(postgres_database)
    engine = create_async_engine(postgres_database.replace("postgresql", "postgresql+asyncpg"))
    with default_app().using(broker):
        taskflow.configure(middleware=[Stamps()])
        async with AsyncSession(engine) as session, session.begin():
            handles = await taskflow.enqueue([charge.bind(each) for each in range(3)], connection=session)
        infos = [await handle.info() for handle in handles]
        assert [info and info.headers for info in infos] == [{"stamp": "here"}] * 3
    await engine.dispose()
    await broker.close()
