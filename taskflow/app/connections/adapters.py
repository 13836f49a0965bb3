"""Recognizes callers' connections, and runs statements on them. No driver is imported: a connection's own driver is already loaded."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from taskflow.app.connections import RunsStatement
from taskflow.broker.transactional import Dialect, Row, Statement
from taskflow.model.errors import WrongConnection

T = TypeVar("T")


class ConnectionAdapter:
    """Runs statements on a caller's connection. `dialect` is None if unknown. `driver` is the driver's connection beneath any wrappers."""

    is_awaited: ClassVar[bool] = False
    dialect: Dialect | None = "postgresql"

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @property
    def driver(self) -> Any:
        return self.connection

    def check_open(self) -> None:
        """Raise WrongConnection if the connection is closed, or if it isn't in a transaction and won't begin one by itself."""


class SyncAdapter(ConnectionAdapter, ABC):
    """Adapts a connection that is used without `await`."""

    def begin(self) -> None:  # most drivers begin in time
        """Begin a transaction if the driver would begin it only before the first statement that writes, which is too late."""

    @abstractmethod
    def run(self, statement: Statement) -> Sequence[Row]: ...


class AwaitedAdapter(ConnectionAdapter, ABC):
    """Adapts a connection that is used with `await`."""

    is_awaited = True

    @abstractmethod
    async def run_awaited(self, statement: Statement) -> Sequence[Row]: ...


class RunSyncAdapter(ConnectionAdapter, ABC):
    """Adapts a connection that is used with `await`, and passes its synchronous counterpart to synchronous code."""

    is_awaited = True

    @abstractmethod
    async def run_sync(self, function: Callable[[SyncAdapter], T]) -> T: ...


def _no_transaction(cure: str) -> WrongConnection:
    return WrongConnection(f"the connection is not in a transaction, so nothing could be rolled back: {cure}")


_CLOSED: Final = "the connection is closed: use an open one"


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


class AsyncpgAdapter(AwaitedAdapter):
    @property
    def driver(self) -> Any:
        return getattr(self.connection, "_con", None) or self.connection  # beneath a pool's proxy, which is a new object for each acquire()

    def check_open(self) -> None:
        if getattr(self.connection, "_con", self.connection) is None:
            raise WrongConnection("the connection was returned to its pool: send inside the `async with pool.acquire()` block")
        if self.connection.is_closed():
            raise WrongConnection(_CLOSED)
        if not self.connection.is_in_transaction():
            raise _no_transaction("use `async with connection.transaction():`")

    async def run_awaited(self, statement: Statement) -> Sequence[Row]:
        return await self.connection.fetch(statement.sql.replace("%s", "$1"), *statement.parameters)  # type: ignore[no-any-return]


class PsycopgAdapter(SyncAdapter):
    """Adapts psycopg 3. It uses psycopg's own cursor class and tuples as rows, whatever the connection is set to use."""

    how_to_begin: ClassVar[str] = "use `with connection.transaction():`, or a connection without autocommit"

    def check_open(self) -> None:
        if self.connection.closed:
            raise WrongConnection(_CLOSED)
        if self.connection.autocommit and self.connection.info.transaction_status == 0:
            raise _no_transaction(self.how_to_begin)

    def run(self, statement: Statement) -> Sequence[Row]:
        psycopg = sys.modules["psycopg"]
        with psycopg.Cursor(self.connection, row_factory=psycopg.rows.tuple_row) as cursor:
            return cursor.execute(statement.sql, statement.parameters).fetchall()  # type: ignore[no-any-return]


class AsyncPsycopgAdapter(AwaitedAdapter):
    how_to_begin = PsycopgAdapter.how_to_begin
    check_open = PsycopgAdapter.check_open

    async def run_awaited(self, statement: Statement) -> Sequence[Row]:
        psycopg = sys.modules["psycopg"]
        async with psycopg.AsyncCursor(self.connection, row_factory=psycopg.rows.tuple_row) as cursor:
            await cursor.execute(statement.sql, statement.parameters)
            return await cursor.fetchall()  # type: ignore[no-any-return]


class Psycopg2Adapter(PsycopgAdapter):
    how_to_begin = "set connection.autocommit to False"

    def run(self, statement: Statement) -> Sequence[Row]:
        with self.connection.cursor(cursor_factory=sys.modules["psycopg2.extensions"].cursor) as cursor:
            cursor.execute(statement.sql, statement.parameters)
            return cursor.fetchall()  # type: ignore[no-any-return]


# --- SQLite ----------------------------------------------------------------------------------------------------------


class SqliteAdapter(SyncAdapter):
    """Adapts sqlite3. It makes cursors directly from sqlite3's class, so that they don't use the connection's row factory."""

    dialect = "sqlite"

    def check_open(self) -> None:
        sqlite3 = sys.modules["sqlite3"]
        try:
            sqlite3.Cursor(self.connection).execute("SELECT 1")
        except sqlite3.ProgrammingError as error:  # the connection is closed, or belongs to another thread
            raise WrongConnection(str(error)) from error
        _begins_here(self.connection)

    def begin(self) -> None:
        if _begins_here(self.connection):
            self.run(Statement(BEGIN))

    def run(self, statement: Statement) -> Sequence[Row]:
        cursor = sys.modules["sqlite3"].Cursor(self.connection)
        return cursor.execute(*statement).fetchall()  # type: ignore[no-any-return]


class AiosqliteAdapter(RunSyncAdapter):
    """Adapts aiosqlite. An operation runs as a whole in the connection's thread. With four thread switches a statement, it took 5 ms."""

    dialect = "sqlite"

    async def run_sync(self, function: Callable[[SyncAdapter], T]) -> T:
        try:
            driver = self.connection._conn
        except ValueError as error:  # the connection is closed
            raise WrongConnection(str(error)) from error
        return await self.connection._execute(function, SqliteAdapter(driver))  # type: ignore[no-any-return]


BEGIN: Final = "BEGIN IMMEDIATE"
"""Takes the write lock immediately. A transaction that has only read can't take it later if another connection has written meanwhile."""


def _begins_here(connection: Any) -> bool:
    """Return True if the driver would begin a transaction before a statement that writes. Raises WrongConnection in autocommit mode."""
    if connection.in_transaction:
        return False
    if connection.isolation_level is None or getattr(connection, "autocommit", None) is True:
        raise _no_transaction("execute BEGIN IMMEDIATE first, or use a connection without autocommit")
    return getattr(connection, "autocommit", None) is not False  # otherwise sqlite3 has already begun a transaction


DRIVERS: Final[Mapping[str, type[SyncAdapter]]] = {
    "psycopg.Connection": PsycopgAdapter,
    "psycopg2.extensions.connection": Psycopg2Adapter,
    "sqlite3.Connection": SqliteAdapter,
}
"""The adapters of the drivers that frameworks use, by class name."""


def by_class_name(connection: object, among: Mapping[str, T]) -> T | None:
    """Return the entry for the connection's class or its nearest base class, by name, or None if there is none."""
    for base in type(connection).__mro__:
        if (found := among.get(f"{base.__module__}.{base.__qualname__}")) is not None:
            return found
    return None


# --- frameworks ------------------------------------------------------------------------------------------------------


class SqlAlchemyAdapter(SyncAdapter):
    """Adapts a session or connection of SQLAlchemy. It uses `exec_driver_sql`, where some dialects begin the driver's transaction."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection if hasattr(connection, "exec_driver_sql") else connection.connection())
        if self.connection.closed:
            raise WrongConnection(_CLOSED)
        name = self.connection.dialect.name
        if name not in ("postgresql", "sqlite"):
            raise WrongConnection(f"the connection is to a {name} database; jobs can be sent only in PostgreSQL and SQLite transactions")
        self.dialect = name

    @property
    def driver(self) -> Any:
        return self.connection.connection.driver_connection

    def check_open(self) -> None:
        if getattr(self.connection.connection.dbapi_connection, "autocommit", False) is True:
            raise _no_transaction('use an engine or connection without isolation_level="AUTOCOMMIT"')
        if not self.connection.in_transaction():
            self.connection.begin()  # as the connection itself would before its first statement

    def begin(self) -> None:
        if self.dialect == "sqlite" and _begins_here(self.driver):
            self.connection.exec_driver_sql(BEGIN)

    def run(self, statement: Statement) -> Sequence[Row]:
        sql = statement.sql.replace("%s", "$1") if self.connection.dialect.paramstyle == "numeric_dollar" else statement.sql
        result = self.connection.exec_driver_sql(sql, statement.parameters)
        return result.fetchall() if result.returns_rows else ()


class AsyncSqlAlchemyAdapter(RunSyncAdapter):
    """Adapts a connection or session of SQLAlchemy's asyncio extension."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection if hasattr(connection, "run_sync") else connection())  # async_scoped_session() returns a session

    async def run_sync(self, function: Callable[[SyncAdapter], T]) -> T:
        return await self.connection.run_sync(lambda below: function(SqlAlchemyAdapter(below)))  # type: ignore[no-any-return]


class DjangoAdapter(SyncAdapter):
    """Adapts a Django connection. Statements go to the driver's connection, because Django would rewrite their placeholders."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        if connection.vendor not in ("postgresql", "sqlite"):
            raise WrongConnection(f"the connection is to {connection.vendor}; jobs can be sent only in PostgreSQL and SQLite transactions")
        self.dialect = connection.vendor

    @property
    def driver(self) -> Any:
        return self.connection.connection

    def check_open(self) -> None:
        self.connection.validate_thread_sharing()
        self.connection.ensure_connection()
        if not self.connection.in_atomic_block and self.connection.get_autocommit():
            raise _no_transaction("use `with transaction.atomic():`")
        self.connection.validate_no_broken_transaction()
        adapter = by_class_name(self.driver, DRIVERS)
        if adapter is None:
            kind = type(self.driver)
            raise TypeError(
                f"connection= got a Django connection that uses {kind.__module__}.{kind.__qualname__}: use one of {', '.join(DRIVERS)}"
            )
        self._below = adapter(self.driver)
        self._below.check_open()

    def begin(self) -> None:
        self._below.begin()

    def run(self, statement: Statement) -> Sequence[Row]:
        with self.connection.wrap_database_errors:
            return self._below.run(statement)


class RunsStatementAdapter(SyncAdapter):
    dialect = None

    def run(self, statement: Statement) -> Sequence[Row]:
        return _rows(self.connection.run_statement(*statement))


class AwaitedRunsStatementAdapter(AwaitedAdapter):
    dialect = None

    async def run_awaited(self, statement: Statement) -> Sequence[Row]:
        return _rows(await self.connection.run_statement(*statement))


def _rows(returned: Any) -> Sequence[Row]:
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise TypeError("run_statement() returned an awaitable, but is not declared with `async def`")
    return [tuple(row.values() if isinstance(row, Mapping) else row) for row in returned or ()]


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
    **dict.fromkeys(("Engine", "AsyncEngine"), "pass one of its connections, as in `with engine.begin() as connection:`"),
    **dict.fromkeys(("sessionmaker", "async_sessionmaker"), "pass a session that it made"),
    **dict.fromkeys(("Pool", "ConnectionPool", "AsyncConnectionPool"), "pass one of its connections"),
    **dict.fromkeys(("Cursor", "AsyncCursor", "CursorWrapper", "cursor"), "pass its connection"),
}
"""Advice for objects that are easily mistaken for a connection, by class name."""


def adapter_class(connection: object) -> type[ConnectionAdapter]:
    """Return the adapter class for a connection. Raises TypeError for anything that is not a connection."""
    found = by_class_name(connection, _ADAPTERS)
    if found is not None:
        return found
    if isinstance(connection, RunsStatement) and not isinstance(connection, type):
        return AwaitedRunsStatementAdapter if inspect.iscoroutinefunction(connection.run_statement) else RunsStatementAdapter
    kind = type(connection)
    cure = next((_NEARLY[base.__name__] for base in type.mro(kind) if base.__name__ in _NEARLY), None) or (
        "expected a connection or session of asyncpg, psycopg, psycopg2, sqlite3, aiosqlite, SQLAlchemy or Django, or a RunsStatement"
    )
    raise TypeError(f"connection= got a {kind.__module__}.{kind.__qualname__}: {cure}")
