"""Maps the names of queues and jobs to small numbers, which job rows contain instead. A number is never reused for another name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from taskflow.broker.sqlite.statements import Statements
from taskflow.model.envelope import check_job_name, check_queue
from taskflow.model.stored_values import FieldReader, Unreadable, text


class NameTable:
    """One table of names, with a cache. Call `forget` after a rollback, which removes new numbers.

    `check` returns a name if it is valid, and raises ValueError if it is not.
    """

    def __init__(
        self, connection: sqlite3.Connection, column: str, check: Callable[[str], str], *, find: str, name_of: str, add: str
    ) -> None:
        self._connection = connection
        self._column = column
        self._check = check
        self._find = find
        self._name_of = name_of
        self._add = add
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._drops = 0

    def number(self, name: str) -> int:
        """Return a name's number. If the name is new, it is added."""
        return (
            self._numbers.get(name) or self.find(name) or self._learn(name, self._connection.execute(self._add, (name,)).fetchall()[0][0])
        )

    def find(self, name: str) -> int | None:
        if name in self._numbers:
            return self._numbers[name]
        row = self._connection.execute(self._find, (name,)).fetchone()
        return None if row is None else self._learn(name, row[0])

    def name(self, number: int) -> str:
        """Return the name, or a substitute that contains its number if the stored name cannot be read."""
        name = self.read(number)
        return name if isinstance(name, str) else f"unreadable-{number}"

    def read(self, number: int) -> str | Unreadable:
        if number in self._names:
            return self._names[number]
        row = self._connection.execute(self._name_of, (number,)).fetchone()
        if row is None:
            return Unreadable(self._column, f"number {number} has no name", b"")
        reader = FieldReader()
        name: str = reader.read(self._column, row[0], self._decode, "")
        if reader.unreadable:
            return reader.unreadable[0]
        self._learn(name, number)
        return name

    def has(self, number: int) -> bool:
        return number in self._names or self._connection.execute(self._name_of, (number,)).fetchone() is not None

    def forget(self) -> None:
        self._numbers.clear()
        self._names.clear()

    def forget_if_dropped(self, drops: int) -> None:
        """Empty the cache if names have been dropped since the last call. `drops` is how many times the store has dropped names."""
        if drops != self._drops:
            self.forget()
            self._drops = drops

    def _decode(self, stored: Any) -> str:
        return self._check(text(stored))

    def _learn(self, name: str, number: int) -> int:
        self._numbers[name] = number
        self._names[number] = name
        return number


def queue_names(connection: sqlite3.Connection, sql: Statements) -> NameTable:
    return NameTable(connection, "queue", check_queue, find=sql["queue_number"], name_of=sql["queue_name"], add=sql["add_queue"])


def job_names(connection: sqlite3.Connection, sql: Statements) -> NameTable:
    return NameTable(connection, "name", check_job_name, find=sql["job_name_number"], name_of=sql["job_name"], add=sql["add_job_name"])
