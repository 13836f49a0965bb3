"""Queues and job names go into rows as small numbers. Numbers are never given up, so that what was once looked up stays true."""

from __future__ import annotations

import sqlite3

from taskflow.broker.sqlite.statements import Statements


class Names:
    """One table of names and what has been read of it. `forget` after a rollback: a number that it made is not there any more."""

    def __init__(self, connection: sqlite3.Connection, *, find: str, name_of: str, add: str) -> None:
        self._connection = connection
        self._find = find
        self._name_of = name_of
        self._add = add
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def number(self, name: str) -> int:
        """The number of a name, given now if it has none."""
        return (
            self._numbers.get(name) or self.find(name) or self._learn(name, self._connection.execute(self._add, (name,)).fetchall()[0][0])
        )

    def find(self, name: str) -> int | None:
        if name in self._numbers:
            return self._numbers[name]
        row = self._connection.execute(self._find, (name,)).fetchone()
        return None if row is None else self._learn(name, row[0])

    def name(self, number: int) -> str:
        if number not in self._names:
            [row] = self._connection.execute(self._name_of, (number,)).fetchall()
            self._learn(row[0], number)
        return self._names[number]

    def forget(self) -> None:
        self._numbers.clear()
        self._names.clear()

    def _learn(self, name: str, number: int) -> int:
        self._numbers[name] = number
        self._names[number] = name
        return number


def queue_names(connection: sqlite3.Connection, sql: Statements) -> Names:
    return Names(connection, find=sql["queue_number"], name_of=sql["queue_name"], add=sql["add_queue"])


def job_names(connection: sqlite3.Connection, sql: Statements) -> Names:
    return Names(connection, find=sql["job_name_number"], name_of=sql["job_name"], add=sql["add_job_name"])
