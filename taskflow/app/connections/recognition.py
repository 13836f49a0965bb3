"""Recognizes connections by the names of their classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Final

from taskflow.app.connections.adapters import (
    DRIVERS,
    AiosqliteAdapter,
    AsyncpgAdapter,
    AsyncPsycopgAdapter,
    AsyncSqlAlchemyAdapter,
    AwaitedRunsStatementAdapter,
    ConnectionAdapter,
    DjangoAdapter,
    RunsStatementAdapter,
    SqlAlchemyAdapter,
    by_class_name,
)
from taskflow.app.connections.types import RunsStatement

_ADAPTERS: Final[Mapping[str, type[ConnectionAdapter]]] = {
    **DRIVERS,
    "asyncpg.connection.Connection": AsyncpgAdapter,
    "asyncpg.pool.PoolConnectionProxy": AsyncpgAdapter,
    "psycopg.AsyncConnection": AsyncPsycopgAdapter,
    "aiosqlite.core.Connection": AiosqliteAdapter,
    "sqlalchemy.engine.base.Connection": SqlAlchemyAdapter,
    "sqlalchemy.orm.session.Session": SqlAlchemyAdapter,
    "sqlalchemy.orm.scoping.scoped_session": SqlAlchemyAdapter,
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": AsyncSqlAlchemyAdapter,
    "sqlalchemy.ext.asyncio.session.AsyncSession": AsyncSqlAlchemyAdapter,
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": AsyncSqlAlchemyAdapter,
    "django.utils.connection.ConnectionProxy": DjangoAdapter,
    "django.db.backends.base.base.BaseDatabaseWrapper": DjangoAdapter,
}

_NEARLY: Final[Mapping[str, str]] = {
    "sqlalchemy.engine.base.Engine": "give a connection of it, from `with engine.begin() as connection:`",
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": "give a connection of it, from `async with engine.begin() as connection:`",
    "sqlalchemy.orm.session.sessionmaker": "give a session made by it",
    "sqlalchemy.ext.asyncio.session.async_sessionmaker": "give a session made by it",
    "asyncpg.pool.Pool": "give a connection of it, from `async with pool.acquire() as connection:`",
    "psycopg_pool.pool.ConnectionPool": "give a connection of it, from `with pool.connection() as connection:`",
    "psycopg_pool.pool_async.AsyncConnectionPool": "give a connection of it, from `async with pool.connection() as connection:`",
    "sqlite3.Cursor": "give its connection",
    "aiosqlite.cursor.Cursor": "give its connection",
    "django.db.backends.utils.CursorWrapper": "give its connection",
    "psycopg.Cursor": "give its connection",
    "psycopg.AsyncCursor": "give its connection",
    "psycopg2.extensions.cursor": "give its connection",
}
"""Objects that are easily mistaken for a connection, and what to do instead."""


def _class_for(connection: object) -> type[ConnectionAdapter]:
    """Return the class for a connection. Raises TypeError for anything that is not a connection."""
    found = by_class_name(connection, _ADAPTERS)
    if found is not None:
        return found
    if isinstance(connection, RunsStatement) and not isinstance(connection, type):
        return AwaitedRunsStatementAdapter if inspect.iscoroutinefunction(connection.run_statement) else RunsStatementAdapter
    kind = type(connection)
    cure = by_class_name(connection, _NEARLY) or (
        "expected a connection or session of asyncpg, psycopg, psycopg2, sqlite3, aiosqlite, SQLAlchemy or Django, or a RunsStatement"
    )
    raise TypeError(f"connection= got a {kind.__module__}.{kind.__qualname__}: {cure}")


def adapter_of(connection: object) -> ConnectionAdapter:
    return _class_for(connection)(connection)


def check_connection(connection: object) -> None:
    """Raise TypeError unless the object is a connection that an adapter exists for."""
    _class_for(connection)


def is_awaited(connection: object) -> bool:
    """Return True if the connection is used with `await`."""
    return _class_for(connection).is_awaited
