"""Connections that cannot carry a job are refused with the reason; and settings of connections that change nothing for jobs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg import rows
from sqlalchemy import event, orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import taskflow
from taskflow import ConfigurationError, JobHandle, Status, WrongConnection, run_sync
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.support.postgres import shared_postgres
from tests.transactions.handles import a_database
from tests.transactions.jobs import admit, charge, refund


@pytest.fixture
def user(postgres_database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_database) as connection:
        yield connection
        if not connection.closed:
            connection.rollback()


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


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ("postgresql://localhost", r"connection= got a builtins\.str: expected a connection or session of asyncpg, psycopg"),
        (42, "expected a connection"),
        (sqlalchemy.create_engine("sqlite://"), r"with engine\.begin\(\) as connection"),
        (orm.sessionmaker(), "pass a session that it made"),
        (sqlite3.Connection, "expected a connection"),
    ],
)
def test_an_object_that_is_not_a_connection_is_refused_when_it_is_given(given: Any, cure: str) -> None:
    with pytest.raises(TypeError, match=cure):
        charge.options(connection=given)
    with pytest.raises(TypeError, match=cure):
        taskflow.enqueue_sync([charge.bind(1)], connection=given)


def in_autocommit(connection: Any) -> Any:
    connection.autocommit = True
    return connection


def closed(connection: Any) -> Any:
    connection.close()
    return connection


def of_engine(url: str) -> Any:
    return sqlalchemy.create_engine(
        url.replace("postgresql", "postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=NullPool
    ).connect()


UNFIT: dict[str, tuple[Callable[[str], Any], str]] = {
    "closed": (lambda url: closed(psycopg.connect(url)), "the connection is closed"),
    "psycopg": (lambda url: in_autocommit(psycopg.connect(url)), "is not in a transaction"),
    "psycopg2": (lambda url: in_autocommit(psycopg2.connect(url)), "is not in a transaction"),
    "engine": (of_engine, "AUTOCOMMIT"),
    "kind": (lambda _: sqlite3.connect(":memory:"), "is to a SQLite database, but the broker is PostgreSQL, the schema 'taskflow' at"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_connection_that_is_closed_in_no_transaction_or_of_another_kind(broker: Broker, postgres_database: str, what: str) -> None:
    make, says = UNFIT[what]
    connection = make(postgres_database)
    with pytest.raises(WrongConnection, match=says):
        charge.options(connection=connection).delay_sync(1)
    connection.close()


async def test_asyncpg_outside_a_transaction(broker_in_loop: Broker, postgres_database: str) -> None:
    connection = await asyncpg.connect(postgres_database)
    with pytest.raises(WrongConnection, match=r"connection\.transaction\(\)"):
        await charge.options(connection=connection).delay(1)
    await connection.close()


def test_an_awaited_connection_in_code_without_a_loop(broker: Broker) -> None:
    connection = AsyncSession()
    with pytest.raises(TypeError, match=r"AsyncSession is an async connection: send with `await \.delay\(\)`"):
        charge.options(connection=connection).delay_sync(1)


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another database, with one of the user's tables."""
    with a_database(has_store=False) as name:
        yield shared_postgres().url(name)


@pytest.mark.parametrize(
    ("has_store", "says"), [(False, "the connection's database has no such store"), (True, "different database than the broker's")]
)
def test_another_database(broker: Broker, elsewhere: str, has_store: bool, says: str) -> None:
    if has_store:
        other = connect(elsewhere)
        run_sync(other.read([bytes(16)]))  # makes the schema
        run_sync(other.close())
    with psycopg.connect(elsewhere) as connection:
        connection.execute("INSERT INTO orders (number) VALUES (1)")
        for _ in range(2):
            with pytest.raises(WrongConnection, match=says):
                charge.options(connection=connection).delay_sync(1)
        connection.commit()
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_a_store_that_was_made_anew(postgres_database: str, user: psycopg.Connection) -> None:
    """The broker learns the new store's name with the next connection; known ones are to the same database as before."""
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


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("sqlite:///{}/app.db", WrongConnection, "the connection is to a PostgreSQL database, but the broker is"),
        ("memory://", ConfigurationError, r"^connection= needs .* PostgreSQL or SQLite, but this broker is"),
    ],
)
def test_a_broker_of_another_kind(user: psycopg.Connection, tmp_path: Path, url: str, kind: type[Exception], says: str) -> None:
    user.execute("SELECT 1")
    with default_app().using(opened := connect(url.format(tmp_path))):
        with pytest.raises(kind, match=says):
            charge.options(connection=user).delay_sync(1)
        run_sync(opened.close())


@pytest.mark.parametrize("on_conflict", ["keep", "replace", "raise"])
@pytest.mark.parametrize("ends", ["cancelled", "replaced"])
def test_a_key_whose_job_has_ended_since_the_transaction_began(
    broker: Broker, user: psycopg.Connection, on_conflict: Literal["keep", "replace", "raise"], ends: str
) -> None:
    """At this isolation level the transaction still sees the ended job: if that kept the key, the new job would be lost."""
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


def test_middleware_of_a_sender_without_a_loop(broker: Broker, user: psycopg.Connection) -> None:
    """It runs in the portal, the statement in the caller's thread."""
    threads = list[str]()

    class Stamps(taskflow.Middleware):
        async def enqueue(self, call: taskflow.EnqueueCall, call_next: taskflow.EnqueueNext) -> None:
            call.headers["stamp"] = "here"
            await asyncio.sleep(0.01)
            await call_next(call)
            threads.append(threading.current_thread().name)

    with default_app().using(broker):
        taskflow.configure(middleware=[Stamps()])
        handle = charge.options(connection=user).delay_sync(1)
        [many] = taskflow.enqueue_sync([charge.bind(2)], connection=user)
        user.commit()
        for each in (handle, many):
            info = run_sync(each.info())
            assert info is not None
            assert info.headers == {"stamp": "here"}
    assert threads == ["taskflow-portal"] * 2


def assert_sends(connection: Any, commit: Callable[[], None]) -> None:
    """Send one job, many, and one whose key another job has, which the answer's rows name."""
    handles = [charge.options(connection=connection).delay_sync(1)]
    handles += taskflow.enqueue_sync([charge.bind(2), charge.options(key="settings").bind(3)], connection=connection)
    again = charge.options(connection=connection, key="settings").delay_sync(4)
    assert (again.id, again.is_new) == (handles[-1].id, False)
    commit()
    run_sync(admit())
    assert [run_sync(handle.status()) for handle in handles] == [Status.READY] * 3
    run_sync(again.cancel())


@pytest.mark.parametrize("row_factory", [rows.dict_row, rows.namedtuple_row, rows.scalar_row])
@pytest.mark.parametrize("cursor_factory", [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor])
def test_factories_of_psycopg(broker: Broker, postgres_database: str, row_factory: Any, cursor_factory: Any) -> None:
    with psycopg.connect(postgres_database, row_factory=row_factory, cursor_factory=cursor_factory) as connection:
        assert_sends(connection, connection.commit)


def test_a_pipeline_of_psycopg(broker: Broker, postgres_database: str) -> None:
    with psycopg.connect(postgres_database) as connection:
        with connection.pipeline():
            connection.execute("SELECT 1")
            handle = charge.options(connection=connection).delay_sync(1)
        connection.commit()
    assert run_sync(handle.status()) is Status.READY


@pytest.mark.parametrize("kind", [psycopg2.extras.DictConnection, psycopg2.extras.RealDictConnection, psycopg2.extras.NamedTupleConnection])
def test_connections_of_psycopg2(broker: Broker, postgres_database: str, kind: Any) -> None:
    connection = psycopg2.connect(postgres_database, connection_factory=kind)
    assert_sends(connection, connection.commit)
    connection.close()


async def test_codecs_of_asyncpg(broker_in_loop: Broker, postgres_database: str) -> None:
    connection = await asyncpg.connect(postgres_database)
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    async with connection.transaction():
        [handle] = await taskflow.enqueue([charge.options(key="codecs").bind(2)], connection=connection)
    await admit()
    assert await handle.status() is Status.READY
    await handle.cancel()
    await connection.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sessions_of_sqlalchemy(broker: Broker, postgres_database: str, driver: str) -> None:
    """They are bound to a connection, made by `begin()`, nested, or have a listener that rewrites statements."""
    engine = sqlalchemy.create_engine(postgres_database.replace("postgresql", f"postgresql+{driver}"))

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def comment(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> tuple[str, Any]:
        return f"{statement} /* by 100%% of us */", parameters

    with engine.connect() as connection, orm.Session(bind=connection) as session:
        assert_sends(session, session.commit)
    with orm.sessionmaker(engine).begin() as session, session.begin_nested():
        handles = [charge.options(connection=session).delay_sync(1)]
    with engine.begin() as connection:
        handles.append(charge.options(connection=connection).delay_sync(1))
    assert [run_sync(handle.status()) for handle in handles] == [Status.READY] * 2
    engine.dispose()


async def test_a_hook_of_an_async_session_sends_in_its_transaction(broker_in_loop: Broker, postgres_database: str) -> None:
    """The hook is synchronous, although its thread has a running loop."""
    engine = create_async_engine(postgres_database.replace("postgresql", "postgresql+asyncpg"))
    handles = []
    async with AsyncSession(engine) as session:

        @event.listens_for(session.sync_session, "before_commit")
        def outbox(session: orm.Session) -> None:
            handles.append(charge.options(connection=session).delay_sync(1))

        handles.append(await session.run_sync(lambda below: charge.options(connection=below).delay_sync(2)))
        handles += await session.run_sync(lambda below: taskflow.enqueue_sync([charge.bind(3)], connection=below))
        await session.commit()
    assert [await handle.status() for handle in handles] == [Status.READY] * 3
    await engine.dispose()
