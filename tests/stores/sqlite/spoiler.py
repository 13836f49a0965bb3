"""Spoils a file's values by SQL, with the tables' own checks switched off."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.spoiling import Stored, Value

_HIDING: Final = frozenset({"id", "status", "ended_at", "fade_at"})


class SqliteSpoiler:
    """See `tests.support.spoiling.Spoiler`."""

    def __init__(self, path: Path, namespace: str = "taskflow") -> None:
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        self._connection.execute("PRAGMA ignore_check_constraints=ON")
        self._prefix = namespace

    def values_of(self, owner: bytes) -> Sequence[Value]:
        for table, key in (("jobs", "seq"), ("sessions", "number")):
            if (found := self._row(table, key, owner)) is not None:
                return [*found, *self._own_names(found)]
        raise AssertionError(f"{owner!r} is in no table")

    def _row(self, table: str, key: str, owner: bytes) -> list[Value] | None:
        cursor = self._connection.execute(f'SELECT * FROM "{self._prefix}_{table}" WHERE id = ?', (owner,))
        row = cursor.fetchone()
        if row is None:
            return None
        columns = [column for column, *_ in cursor.description]
        at = row[columns.index(key)]
        return [Value(f"{table}.{column}", (table, column, key, at), stored) for column, stored in zip(columns, row, strict=True)]

    def _own_names(self, row: list[Value]) -> list[Value]:
        """The names of its queue and job, if no other job has them."""
        found = list[Value]()
        for column, table in (("queue", "queues"), ("name", "job_names")):
            numbers = [value.stored for value in row if value.place == f"jobs.{column}"]
            for number in numbers:
                [(users,)] = self._connection.execute(f'SELECT count(*) FROM "{self._prefix}_jobs" WHERE "{column}" = ?', (number,))
                names = self._connection.execute(f'SELECT name FROM "{self._prefix}_{table}" WHERE number = ?', (number,)).fetchall()
                found += [Value(f"{table}.name", (table, "name", "number", number), name) for (name,) in names if users == 1]
        return found

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        return [value for value in self.values_of(job_id) if value.address[0] == "jobs" and value.address[1] not in ("id", "seq")]

    def write(self, value: Value, stored: Stored) -> bool:
        table, column, key, at = value.address
        parameter = "CAST(? AS TEXT)" if isinstance(stored, str) else "?"
        given = stored.encode(errors="surrogateescape") if isinstance(stored, str) else stored
        try:
            self._connection.execute(f'UPDATE "{self._prefix}_{table}" SET "{column}" = {parameter} WHERE "{key}" = ?', (given, at))
        except sqlite3.Error:  # NOT NULL and UNIQUE hold whatever is switched off
            return False
        return True

    def may_hide(self, value: Value) -> bool:
        return value.address[1] in _HIDING

    def close(self) -> None:
        self._connection.close()
