"""What queues have and had, counted in memory while a transaction runs and written once at its end."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Final

from taskflow.broker.sqlite.bulk import execute_rows, insert_rows
from taskflow.broker.sqlite.statements import Statements
from taskflow.model.record import CODES

_CODES: Final = sorted(CODES.values())


class Tally:
    """Moves not yet written. Whoever reads counts flushes first."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements) -> None:
        self._connection = connection
        self._sql = sql
        self._moves = Counter[tuple[int, int]]()
        self._events = Counter[tuple[int, str]]()

    def move(self, queue: int, event: str, before: int | None, after: int | None, number: int = 1) -> None:
        if before is not None:
            self._moves[queue, before] -= number
        if after is not None:
            self._moves[queue, after] += number
        self._events[queue, event] += number

    def count(self, queue: int, event: str, number: int) -> None:
        self._events[queue, event] += number

    def has_moved(self, status: int) -> bool:
        """Whether something not yet written has come to be in that status, or was."""
        return any(code == status for _, code in self._moves)

    def flush(self) -> None:
        if not self._events:
            return
        moves, events = self._moves, self._events
        changes = [(queue, *(moves[queue, code] for code in _CODES)) for queue in sorted({queue for queue, _ in moves})]
        execute_rows(self._connection, self._sql, "count_moves", changes)
        insert_rows(self._connection, self._sql, "count_events", [(*of, number) for of, number in events.items()])
        self.forget()

    def forget(self) -> None:
        self._moves.clear()
        self._events.clear()
