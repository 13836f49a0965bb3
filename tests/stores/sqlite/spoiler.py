"""Spoils a file's values by SQL: with each value that the columns and the tables' checks admit."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.spoiling import Stored, Value

_HIDING: Final = frozenset({"id", "status", "ended_at", "fade_at", "queue"})
"""Ended jobs are listed queue by queue, and counts know no queue that another program has written."""


class SqliteSpoiler:
    """See `tests.support.spoiling.Spoiler`."""

    def __init__(self, path: Path, namespace: str = "taskflow") -> None:
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        self._prefix = namespace

    def values_of(self, owner: bytes) -> Sequence[Value]:
        for table in ("jobs", "sessions"):
            if (found := self._row(table, owner)) is not None:
                return found
        raise AssertionError(f"{owner!r} is in no table")

    def _row(self, table: str, owner: bytes) -> list[Value] | None:
        cursor = self._connection.execute(f'SELECT * FROM "{self._prefix}_{table}" WHERE id = ?', (owner,))
        row = cursor.fetchone()
        if row is None:
            return None
        columns = {name: value for (name, *_), value in zip(cursor.description, row, strict=True) if not name.startswith("falling_")}
        key = "seq" if table == "jobs" else "id"
        del columns["seq" if table == "jobs" else "id"]
        at = row[0]
        return [Value(f"{table}.{column}", (table, column, key, at), stored) for column, stored in columns.items()]

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        return [value for value in self.values_of(job_id) if value.address[0] == "jobs" and value.address[1] != "id"]

    def write(self, value: Value, stored: Stored) -> bool:
        table, column, key, at = value.address
        parameter = "CAST(? AS TEXT)" if isinstance(stored, str) else "?"
        given = stored.encode(errors="surrogateescape") if isinstance(stored, str) else stored
        try:
            self._connection.execute(f'UPDATE "{self._prefix}_{table}" SET "{column}" = {parameter} WHERE "{key}" = ?', (given, at))
        except sqlite3.Error:  # no value of the column's type, or of no job, or not unique
            return False
        return True

    def may_hide(self, value: Value) -> bool:
        return value.address[1] in _HIDING

    def close(self) -> None:
        self._connection.close()
