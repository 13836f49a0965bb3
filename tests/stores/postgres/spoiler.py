"""Spoils the values of a schema by SQL: with each value that the columns and the tables' checks admit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import rows

from tests.support.spoiling import Stored, Value

_HIDING: Final = frozenset({"id", "status", "ended_at", "fade_at", "queue"})
"""Ended jobs are listed queue by queue, and counts know no queue that another program has written."""

_TYPES: Final = """
    SELECT relname, attname, format_type(atttypid, NULL) AS kind FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = %s::regnamespace AND relname IN ('jobs', 'sessions') AND attnum > 0 AND attidentity = ''
        AND NOT (relname = 'sessions' AND attname = 'id')
"""


class PostgresSpoiler:
    """See `tests.support.spoiling.Spoiler`."""

    def __init__(self, url: str, schema: str) -> None:
        connect: Any = psycopg.connect
        self._connection: Any = connect(url, autocommit=True, row_factory=rows.dict_row)
        self._schema = schema
        self._types: dict[tuple[str, str], str] = {}

    def values_of(self, owner: bytes) -> Sequence[Value]:
        if not self._types:  # the schema is there now
            found = self._connection.execute(_TYPES, [f'"{self._schema}"'])
            self._types = {(row["relname"], row["attname"]): row["kind"] for row in found}
        for table in ("jobs", "sessions"):
            row = self._connection.execute(f'SELECT * FROM "{self._schema}".{table} WHERE id = %s', [owner]).fetchone()
            if row is not None:
                where = f"seq = {row['seq']}" if table == "jobs" else f"id = '\\x{owner.hex()}'"
                columns = [(column, stored) for column, stored in row.items() if (table, column) in self._types]
                return [Value(f"{table}.{column}", (table, column, where), stored) for column, stored in columns]
        raise AssertionError(f"{owner!r} is in no table")

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        return [value for value in self.values_of(job_id) if value.address[0] == "jobs" and value.address[1] not in ("id", "seq")]

    def write(self, value: Value, stored: Stored) -> bool:
        table, column, where = value.address
        if not _is_expressible(stored):
            return False
        literal = _literal(stored, self._types[str(table), str(column)])
        try:
            done = self._connection.execute(f'UPDATE "{self._schema}".{table} SET {column} = {literal} WHERE {where}')
            return bool(done.rowcount == 1)
        except psycopg.Error:  # no value of the column's type, or of no job, or not unique
            return False

    def may_hide(self, value: Value) -> bool:
        return value.address[1] in _HIDING

    def close(self) -> None:
        self._connection.close()


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
