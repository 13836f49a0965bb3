"""Counts the jobs and events of each queue in memory during a transaction, and writes the counts once at its end."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Final

from taskflow.broker.sqlite.statements import Statements, execute_rows, inserts
from taskflow.model.record import CODES

_CODES: Final = sorted(CODES.values())


class Tally:
    """Counts that have not been written yet. Call `flush` before reading counts from the tables."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements) -> None:
        self._connection = connection
        self._sql = sql
        self._moves = Counter[tuple[int, int]]()
        self._events = Counter[tuple[int, str]]()
        self._must_recount = False

    def recount(self) -> None:
        """Make the next flush count all jobs, because the stored counts may be wrong."""
        self._must_recount = True

    def move(self, queue: int, event: str, before: int | None, after: int | None, number: int = 1) -> None:
        if before is not None:
            self._moves[queue, before] -= number
        if after is not None:
            self._moves[queue, after] += number
        self._events[queue, event] += number

    def count(self, queue: int, event: str, number: int) -> None:
        self._events[queue, event] += number

    def has_moved(self, status: int) -> bool:
        """Return True if a move into or out of this status has not been written yet."""
        return any(code == status for _, code in self._moves)

    def flush(self) -> None:
        if not (self._events or self._must_recount):
            return
        moves, events = self._moves, self._events
        changes = [(queue, *(moves[queue, code] for code in _CODES)) for queue in {queue for queue, _ in moves}]
        if self._must_recount or not self._count(changes):
            self._count_all()
        for _ in inserts(self._connection, self._sql, "count_events", [(*of, number) for of, number in events.items()]):
            pass
        self.forget()

    def _count(self, changes: list[tuple[int, ...]]) -> bool:
        """Write the changes. Return False if a count would become negative, because another program has changed a job's status."""
        try:
            execute_rows(self._connection, self._sql, "count_moves", changes)
        except sqlite3.IntegrityError:
            return False
        return True

    def _count_all(self) -> None:
        by_queue: dict[int, Counter[int]] = {}
        for queue, code, number in self._connection.execute(self._sql["all_counts"]):
            by_queue.setdefault(queue, Counter())[code] = number
        self._connection.execute(self._sql["count_none"])
        execute_rows(
            self._connection, self._sql, "count_moves", [(queue, *(of[code] for code in _CODES)) for queue, of in by_queue.items()]
        )

    def forget(self) -> None:
        self._moves.clear()
        self._events.clear()
        self._must_recount = False
