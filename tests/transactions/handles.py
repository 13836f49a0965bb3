"""Users' connections, one class for each driver and framework, with the same methods for the tests. `ALL` names them.

The methods are coroutines. Those of a connection that is used without `await` wait for nothing, so that `driven` can run them without a
loop.
"""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from operator import methodcaller
from typing import Any, Final, TypeVar

import aiosqlite
import asyncpg
import psycopg
import psycopg2
import sqlalchemy
from psycopg import conninfo
from sqlalchemy import event, orm, pool
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlmodel import Session as SqlModelSession

from taskflow import WrongConnection
from tests.support.postgres import of_this_version, shared_postgres

T = TypeVar("T")

TABLE: Final = "CREATE TABLE orders (number integer PRIMARY KEY)"


@contextmanager
def a_database(*, has_store: bool = True) -> Iterator[str]:
    """Yield the name of a database with one of the user's tables."""
    server = shared_postgres()
    name = of_this_version(server) if has_store else server.new_database()
    server.execute(TABLE, name)
    yield name
    server.drop_database(name)


async def maybe(made: Any) -> Any:
    """Await the return value of a driver's method, if it can be awaited."""
    return await made if inspect.isawaitable(made) else made


class User:
    """A user's connection to the database at `place`: the URL of a PostgreSQL database, or the path of a SQLite file."""

    is_awaited = False
    opens_again = False
    """After it was closed, its next use opens another connection."""

    when_closed: type[Exception] = WrongConnection
    """The error if it is used after it was closed."""

    below: Any
    """The framework's or driver's own connection or session."""

    def __init__(self, place: str) -> None:
        self.place = place

    @cached_property
    def connection(self) -> Any:
        """Return what taskflow is given."""
        return self.below

    async def open(self) -> None:
        raise NotImplementedError

    async def begin(self) -> None:
        """Begin a transaction. Drivers that begin one with the first statement need not do anything."""

    async def commit(self) -> None:
        await maybe(self.below.commit())

    async def rollback(self) -> None:
        await maybe(self.below.rollback())

    async def execute(self, sql: str) -> Any:
        cursor = await maybe(self.below.cursor())
        await maybe(cursor.execute(sql))
        return cursor

    async def number(self, sql: str) -> Any:
        [value] = await maybe((await self.execute(sql)).fetchone())
        return value

    async def savepoint(self) -> None:
        await self.execute("SAVEPOINT here")

    async def release(self) -> None:
        await self.execute("RELEASE SAVEPOINT here")

    async def undo(self) -> None:
        """Roll back to the savepoint."""
        await self.execute("ROLLBACK TO SAVEPOINT here")

    async def close(self) -> None:
        await maybe(self.below.close())

    async def lose(self) -> None:
        """End the connection as an outage does. One to SQLite is closed, as when its process ends."""
        if self.place.startswith("postgresql"):
            pid = await self.number("SELECT pg_backend_pid()")
            shared_postgres().execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        else:
            await self.driver_close()

    async def driver_close(self) -> None:
        await self.close()


def driven(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


# --- drivers ---------------------------------------------------------------------------------------------------------


class Asyncpg(User):
    is_awaited = True

    async def open(self) -> None:
        self.below = await asyncpg.connect(self.place)

    async def begin(self) -> None:
        self._transactions: list[Any] = []
        await self.savepoint()

    async def commit(self) -> None:
        await self._transactions.pop().commit()

    async def rollback(self) -> None:
        await self._transactions.pop().rollback()

    async def execute(self, sql: str) -> Any:
        await self.below.execute(sql)

    async def number(self, sql: str) -> Any:
        return await self.below.fetchval(sql)

    async def savepoint(self) -> None:
        self._transactions.append(self.below.transaction())
        await self._transactions[-1].start()

    release = commit
    undo = rollback


class AsyncpgPool(Asyncpg):
    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(self.place, min_size=1, max_size=1)
        self.below = await self._pool.acquire()

    async def close(self) -> None:
        await self._pool.release(self.below)
        self._pool.terminate()


class Plain(User):
    """A connection that a driver's own function has created."""

    def __init__(self, place: str, connect: Callable[[str], Any], *, is_awaited: bool = False) -> None:
        super().__init__(place)
        self._connect, self.is_awaited = connect, is_awaited

    async def open(self) -> None:
        self.below = await maybe(self._connect(self.place))


class PlainSqlite(Plain):
    async def begin(self) -> None:
        """Begin explicitly, because the driver begins only before a statement that writes, and not before a savepoint."""
        await maybe(self.below.execute("BEGIN IMMEDIATE"))


# --- SQLAlchemy ------------------------------------------------------------------------------------------------------


class Alchemy(User):
    """A session, or what `kind` makes of an engine; awaited if its driver is."""

    def __init__(self, place: str, driver: str, kind: Callable[[Any], Any], *, is_awaited: bool = False) -> None:
        super().__init__(place)
        self._driver, self._kind, self.is_awaited = driver, kind, is_awaited

    async def open(self) -> None:
        is_sqlite = "sqlite" in self._driver
        url = f"{self._driver}:///{self.place}" if is_sqlite else self.place.replace("postgresql", self._driver)
        create: Any = sqlalchemy_asyncio.create_async_engine if self.is_awaited else sqlalchemy.create_engine
        self._engine: Any = create(url, poolclass=pool.NullPool)
        if is_sqlite:
            begin_as_documented(self._engine.sync_engine if self.is_awaited else self._engine)
        made = self._kind(self._engine)
        self.below = await made if isinstance(made, sqlalchemy_asyncio.AsyncConnection) else made
        self.opens_again = not hasattr(self.below, "exec_driver_sql")

    async def driver_close(self) -> None:
        core = await maybe(self.below.connection()) if self.opens_again else self.below
        if self.is_awaited:
            await (await core.get_raw_connection()).driver_connection.close()
        else:
            core.connection.dbapi_connection.close()

    async def execute(self, sql: str) -> Any:
        return await maybe(self.below.execute(sqlalchemy.text(sql)))

    async def number(self, sql: str) -> Any:
        return (await self.execute(sql)).scalar_one()

    async def savepoint(self) -> None:
        nested = self.below.begin_nested()
        self._nested = await nested if self.is_awaited else nested

    async def release(self) -> None:
        await maybe(self._nested.commit())

    async def undo(self) -> None:
        await maybe(self._nested.rollback())

    async def close(self) -> None:
        await maybe(self.below.close())
        await maybe(self._engine.dispose())


def begin_as_documented(engine: Any) -> None:
    """Begin as SQLAlchemy's documentation of SQLite says. Otherwise a savepoint would be a transaction by itself."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begins(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


# --- Django ----------------------------------------------------------------------------------------------------------


class Django(User):
    """A connection with `atomic()`. No settings module and no application are needed for it."""

    def __init__(self, place: str, vendor: str) -> None:
        super().__init__(place)
        self._vendor = vendor

    async def open(self) -> None:
        import django
        from django.conf import settings

        if not settings.configured:
            settings.configure()
            django.setup()
        from django.db import connections, transaction

        database: dict[str, Any] = {"ENGINE": f"django.db.backends.{self._vendor}", "NAME": self.place}
        if self._vendor == "postgresql":
            parts = conninfo.conninfo_to_dict(self.place)
            database |= {"NAME": parts["dbname"], "USER": parts["user"], "HOST": parts["host"], "PORT": parts["port"]}
        databases: Any = connections.databases
        self._alias = f"database{len(databases)}"
        databases[self._alias] = connections.configure_settings({"default": database})["default"]
        self.below = connections[self._alias]
        self.atomic: Callable[[], Any] = lambda: transaction.atomic(using=self._alias)

    async def driver_close(self) -> None:
        self.below.connection.close()

    async def begin(self) -> None:
        self._blocks: list[Any] = [self.atomic()]
        self._blocks[0].__enter__()

    async def commit(self) -> None:
        self._blocks.pop().__exit__(None, None, None)

    async def rollback(self) -> None:
        self._blocks.pop().__exit__(RuntimeError, RuntimeError(), None)

    async def savepoint(self) -> None:
        self._blocks.append(self.atomic())
        self._blocks[-1].__enter__()

    release = commit
    undo = rollback


# --- drivers that taskflow does not know -----------------------------------------------------------------------------


class _Mine:
    """Code that users write for their own driver."""

    def __init__(self, below: Any) -> None:
        self._below = below

    def run_statement(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        cursor = self._below.cursor()
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


class _MineAwaited:
    def __init__(self, below: asyncpg.Connection) -> None:
        self._below = below

    async def run_statement(self, statement: str, parameters: Sequence[Any]) -> list[asyncpg.Record]:
        return await self._below.fetch(statement.replace("%s", "$1"), *parameters)


class MinePostgres(Plain):
    when_closed = Exception  # its driver's

    @cached_property
    def connection(self) -> Any:
        return _Mine(self.below)


class MineSqlite(PlainSqlite):
    when_closed = Exception
    connection = MinePostgres.connection


class MineAwaited(Asyncpg):
    when_closed = Exception

    @cached_property
    def connection(self) -> Any:
        return _MineAwaited(self.below)


# --- all of them -----------------------------------------------------------------------------------------------------


_connection: Final = methodcaller("connect")


def _scoped(engine: Any) -> Any:
    return orm.scoped_session(orm.sessionmaker(engine))


def _alchemy(driver: str, kind: Callable[[Any], Any], *, is_awaited: bool = False) -> Callable[[str], User]:
    return lambda place: Alchemy(place, driver, kind, is_awaited=is_awaited)


_async_alchemy: Final = partial(_alchemy, is_awaited=True)

POSTGRES: Final[Mapping[str, Callable[[str], User]]] = {
    "asyncpg": Asyncpg,
    "asyncpg pool": AsyncpgPool,
    "psycopg": partial(Plain, connect=psycopg.connect),
    "psycopg async": partial(Plain, connect=psycopg.AsyncConnection.connect, is_awaited=True),
    "psycopg2": partial(Plain, connect=psycopg2.connect),
    "SQLAlchemy Connection, psycopg": _alchemy("postgresql+psycopg", _connection),
    "SQLAlchemy Session, psycopg": _alchemy("postgresql+psycopg", orm.Session),
    "SQLAlchemy scoped_session, psycopg": _alchemy("postgresql+psycopg", _scoped),
    "SQLAlchemy Connection, psycopg2": _alchemy("postgresql+psycopg2", _connection),
    "SQLAlchemy Session, psycopg2": _alchemy("postgresql+psycopg2", orm.Session),
    "SQLAlchemy AsyncConnection, asyncpg": _async_alchemy("postgresql+asyncpg", _connection),
    "SQLAlchemy AsyncSession, asyncpg": _async_alchemy("postgresql+asyncpg", sqlalchemy_asyncio.AsyncSession),
    "SQLAlchemy AsyncConnection, psycopg": _async_alchemy("postgresql+psycopg", _connection),
    "SQLAlchemy AsyncSession, psycopg": _async_alchemy("postgresql+psycopg", sqlalchemy_asyncio.AsyncSession),
    "SQLModel Session, psycopg": _alchemy("postgresql+psycopg", SqlModelSession),
    "Django, psycopg": lambda place: Django(place, "postgresql"),
    "RunsStatement": partial(MinePostgres, connect=psycopg2.connect),
    "RunsStatement async": MineAwaited,
}

SQLITE: Final[Mapping[str, Callable[[str], User]]] = {
    "sqlite3": partial(PlainSqlite, connect=sqlite3.connect),
    "aiosqlite": partial(PlainSqlite, connect=aiosqlite.connect, is_awaited=True),
    "SQLAlchemy Connection, sqlite3": _alchemy("sqlite+pysqlite", _connection),
    "SQLAlchemy Session, sqlite3": _alchemy("sqlite+pysqlite", orm.Session),
    "SQLAlchemy AsyncConnection, aiosqlite": _async_alchemy("sqlite+aiosqlite", _connection),
    "SQLAlchemy AsyncSession, aiosqlite": _async_alchemy("sqlite+aiosqlite", sqlalchemy_asyncio.AsyncSession),
    "SQLModel Session, sqlite3": _alchemy("sqlite+pysqlite", SqlModelSession),
    "Django, sqlite3": lambda place: Django(place, "sqlite3"),
    "RunsStatement, SQLite": partial(MineSqlite, connect=sqlite3.connect),
}

ALL: Final = {**POSTGRES, **SQLITE}
