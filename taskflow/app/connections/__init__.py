"""The types of the database connections in whose transactions callers can send jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable


class _Commits(Protocol):
    """A connection or session of psycopg, psycopg2, sqlite3, aiosqlite, SQLAlchemy, SQLModel or Django."""

    def commit(self) -> Any: ...

    def rollback(self) -> Any: ...


class _Proxy(Protocol):
    """The type of ``django.db.connection`` when Django's stubs are not installed."""

    def __getattr__(self, item: Any, /) -> Any: ...

    def __contains__(self, key: Any, /) -> Any: ...


class _IsInTransaction(Protocol):
    """An asyncpg connection, which can tell whether it is in a transaction."""

    def is_in_transaction(self) -> bool: ...


@runtime_checkable
class RunsStatement(Protocol):
    """A connection of a driver that taskflow does not know. Implement this to send jobs in its transactions.

    The connection must be in a transaction. taskflow cannot check whether it is.
    """

    def run_statement(self, statement: str, parameters: Sequence[Any], /) -> Iterable[Iterable[Any]] | Awaitable[Iterable[Iterable[Any]]]:
        """Run one SQL statement in the caller's transaction, and return its rows, each as an iterable of values. Must be an
        ``async def`` if the driver is used with `await`.

        `statement`   contains a placeholder for each parameter, ``%s`` for PostgreSQL and ``?`` for SQLite, and no other ``%`` or ``?``
        `parameters`  the values: one str for PostgreSQL; int, str, bytes or None for SQLite
        """
        ...


Connection: TypeAlias = _Commits | _Proxy | _IsInTransaction | RunsStatement
