"""Counts jobs and events, and collects what a transaction has to announce."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from taskflow.broker import topics
from taskflow.broker.sqlite.queries import RecordReader
from taskflow.broker.sqlite.statements import Statements, change_rows
from taskflow.model import wording
from taskflow.model.clock import Clock


@dataclass(slots=True)
class Announcement:
    """The events of a transaction that concern listeners.

    `ready`          the number of jobs that became ready, by queue
    `ended`          the ids of jobs that ended
    `woken`          the topics that steps announce, other than `topics.DUE`
    `is_due`         True if listeners that wait for the next upkeep may have to call it earlier
    `full_claims`    the number of claims that reached their limit, by their queues (empty for all queues): more jobs may be ready
    `is_upkeep`      True if the transaction includes upkeep, after which the file may shrink
    """

    ready: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    ended: set[bytes] = field(default_factory=set)
    woken: set[str] = field(default_factory=set)
    is_due: bool = False
    full_claims: defaultdict[tuple[str, ...], int] = field(default_factory=lambda: defaultdict(int))
    is_upkeep: bool = False

    def __bool__(self) -> bool:
        return bool(self.ready or self.ended or self.full_claims or self.woken or self.is_due)

    def add(self, other: Announcement) -> None:
        for queue, number in other.ready.items():
            self.ready[queue] += number
        for queues, number in other.full_claims.items():
            self.full_claims[queues] += number
        self.ended |= other.ended
        self.woken |= other.woken
        self.is_due |= other.is_due
        self.is_upkeep |= other.is_upkeep

    def topics(self) -> set[str]:
        found = {*map(topics.job, self.ended), *self.woken, *map(topics.queue, self.ready)}
        if self.ready:
            found.add(topics.ANY_QUEUE)
        if self.is_due:
            found.add(topics.DUE)
        return found


class Pending(NamedTuple):
    """The counts and wake-ups that a transaction hasn't written or announced yet."""

    counted: Counter[tuple[str, str]]
    announcement: Announcement


class Counts(RecordReader):
    """Counts jobs and events in memory during a transaction, and writes the counts at its end, or before a query that reads them."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements, clock: Clock, capacity: int | None) -> None:
        super().__init__(connection, sql, clock)
        self._capacity = capacity
        self.announcement = Announcement()
        self._counted = Counter[tuple[str, str]]()
        """Changes to the table of counts that have not been written yet."""

    def count(self, queue: str, event: str, n: int = 1) -> None:
        self._counted[event, queue] += n

    def count_move(self, queue: str, was: int | None, status: int | None, n: int = 1) -> None:
        """Count jobs that have changed their status. `was` is None for new jobs, and `status` for dropped ones."""
        if was is not None:
            self._counted[f"={was}", queue] -= n
        if status is not None:
            self._counted[f"={status}", queue] += n

    def flush(self) -> None:
        """Write the changed counts."""
        if self._counted:
            rows = [(*place, n) for place, n in self._counted.items() if n and place[0] != "=7"]
            self._counted.clear()
            change_rows(self.connection, self.sql, _COUNT, rows)

    def forget(self) -> None:
        """Clear the values that subclasses have read. Called when an operation begins, and when one has failed."""

    # --- several operations in a transaction ---------------------------------------------------------------------------

    def save(self) -> Pending:
        """Return the pending counts and wake-ups of previous operations, and start to collect this operation's wake-ups separately."""
        before = Pending(self._counted.copy(), self.announcement)
        self.announcement = Announcement()
        return before

    def join(self, before: Pending) -> None:
        """Merge this operation's pending wake-ups into those of the previous operations."""
        before.announcement.add(self.announcement)
        self.announcement = before.announcement

    def restore(self, before: Pending) -> None:
        """Discard the counts and wake-ups of an operation that failed. `before` is what `save` returned."""
        self._counted, self.announcement = before
        self.forget()

    def reset(self) -> None:
        """Discard the counts and wake-ups of a transaction that was rolled back."""
        self.restore(Pending(Counter(), Announcement()))

    def take_announcement(self) -> Announcement:
        taken, self.announcement = self.announcement, Announcement()
        return taken

    # --- room ------------------------------------------------------------------------------------------------

    def room_for(self, jobs: int) -> str | None:
        """Return None if there is room for this number of new jobs, and otherwise the message for the caller."""
        if self._capacity is None or not jobs:
            return None
        self.flush()
        [(live,)] = self.connection.execute(self.sql[_LIVE]).fetchall()
        return wording.STORE_FULL % self._capacity if live + jobs > self._capacity else None

    # --- for wake-ups ----------------------------------------------------------------------------------------

    def ready_in(self, queue: str) -> int:
        """Return the number of READY jobs in a queue, or 0 if it is paused."""
        row = self.connection.execute(self.sql[READY_IN], (queue,)).fetchone()
        return 0 if row is None else int(row[0])

    def first_ready_queues(self, limit: int) -> list[str]:
        return [name for name, _ in self.connection.execute(self.sql[READY_QUEUES], (limit, 0)).fetchall()]


READY_OF: Final = """SELECT coalesce(sum(n), 0) FROM "~counted" WHERE what = '=2' AND queue = ? AND n > 0"""

READY_IN: Final = """\
SELECT n FROM "~counted" AS c
WHERE what = '=2' AND queue = ? AND n > 0 AND NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(c.queue AS BLOB))"""

_COUNT: Final = """\
INSERT INTO "~counted" (what, queue, n) SELECT * FROM (VALUES (?, ?, ?) ...) WHERE column1 IS NOT NULL
ON CONFLICT (what, queue) DO UPDATE SET n = max(-1000000000000000, min(1000000000000000, n)) + excluded.n"""

_LIVE: Final = """SELECT coalesce(sum(max(0, min(n, 1000000000000000))), 0) FROM "~counted" WHERE what >= '=0' AND what <= '=3'"""

READY_QUEUES: Final = """\
SELECT queue, n FROM "~counted" AS c INDEXED BY "~counted_ready" WHERE what = '=2' AND n > 0 ORDER BY queue LIMIT ? OFFSET ?"""
