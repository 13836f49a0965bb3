"""Spoils the values of a schema by SQL: with each value that the columns and the tables' checks admit."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import asyncpg

from tests.support.postgres import asked
from tests.support.spoiling import Stored, Value

T = TypeVar("T")

_HIDING: Final = frozenset({"id", "status", "ended_at", "fade_at", "queue"})
"""Ended jobs are listed queue by queue, and counts know no queue that another program has written."""


class PostgresSpoiler:
    """See `tests.support.spoiling.Spoiler`."""

    def __init__(self, url: str, schema: str) -> None:
        self._url = url
        self._schema = schema
        self._types: dict[tuple[str, str], str] = {}

    def values_of(self, owner: bytes) -> Sequence[Value]:
        if not self._types:  # the schema is there now
            self._run(self._read_types)
        return self._run(lambda connection: self._values_of(connection, owner))

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        return [value for value in self.values_of(job_id) if value.address[0] == "jobs" and value.address[1] not in ("id", "seq")]

    def write(self, value: Value, stored: Stored) -> bool:
        table, column, seq = value.address
        if not _is_expressible(stored):
            return False
        query = f'UPDATE "{self._schema}".{table} SET {column} = {_literal(stored, self._types[str(table), str(column)])} WHERE {seq}'
        return self._run(lambda connection: _done(connection, query))

    def may_hide(self, value: Value) -> bool:
        return value.address[1] in _HIDING

    def close(self) -> None:
        """It keeps nothing open."""

    async def _values_of(self, connection: asyncpg.Connection, owner: bytes) -> list[Value]:
        for table in ("jobs", "sessions"):
            row = await connection.fetchrow(f'SELECT * FROM "{self._schema}".{table} WHERE id = $1', owner)
            if row is not None:
                where = f"seq = {row['seq']}" if table == "jobs" else f"id = '\\x{owner.hex()}'"
                return [
                    Value(f"{table}.{column}", (table, column, where), _plain(stored))
                    for column, stored in row.items()
                    if (table, column) in self._types
                ]
        raise AssertionError(f"{owner!r} is in no table")

    async def _read_types(self, connection: asyncpg.Connection) -> None:
        for table, column, kind in await connection.fetch(
            "SELECT relname, attname, format_type(CASE typtype WHEN 'd' THEN typbasetype ELSE atttypid END, NULL) FROM pg_attribute "
            "JOIN pg_type ON pg_type.oid = atttypid JOIN pg_class ON pg_class.oid = attrelid "
            "WHERE relnamespace = $1::regnamespace AND relname IN ('jobs', 'sessions') AND attnum > 0 AND attidentity = '' "
            "AND NOT (relname = 'sessions' AND attname = 'id')",
            f'"{self._schema}"',
        ):
            self._types[table, column] = kind

    def _run(self, ask: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
        return asked(self._url, ask)


def _done(connection: asyncpg.Connection, query: str) -> Coroutine[Any, Any, bool]:
    async def run() -> bool:
        try:
            return bool(await connection.execute(query) == "UPDATE 1")
        except asyncpg.PostgresError:  # no value of the column's type, or of no job, or not unique
            return False

    return run()


def _plain(stored: Any) -> Stored:
    return str(stored) if isinstance(stored, list) else stored


def _is_expressible(stored: Stored) -> bool:
    """Return False for what no UTF-8 database takes as text."""
    return not isinstance(stored, str) or not any(0xD800 <= ord(sign) <= 0xDFFF or sign == "\0" for sign in stored)


def _literal(stored: Stored, kind: str) -> str:
    """As the column's type where there is such a value: PostgreSQL refuses all others."""
    if stored is None:
        return "NULL"
    if isinstance(stored, bytes):
        return f"'\\x{stored.hex()}'::bytea"
    if isinstance(stored, str) and kind == "bytea":
        return f"'\\x{stored.encode().hex()}'::bytea"
    quoted = str(stored).replace("'", "''")
    return f"'{quoted}'::{kind}"
