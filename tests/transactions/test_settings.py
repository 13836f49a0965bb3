"""Settings of users' connections that change how their drivers read and write: they change nothing for the jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg import rows
from sqlalchemy import event, orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import taskflow
from taskflow import Status, run_sync
from taskflow.broker.protocol import Broker
from tests.transactions.jobs import admit, charge


def assert_sends(connection: Any, commit: Callable[[], None]) -> None:
    """A lone job, many, and a key that another job has, which is read from rows."""
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
    """Bound to a connection, made by `begin()`, nested, with a listener that rewrites statements."""
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
    """It is synchronous, although its thread has a running loop."""
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
