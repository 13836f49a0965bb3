"""Reads and writes the rows of jobs within a transaction, and repairs those that are unsound."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from taskflow.broker.sqlite.announcement import Announcement
from taskflow.broker.sqlite.lease_cache import LeaseCache
from taskflow.broker.sqlite.names import job_names, queue_names
from taskflow.broker.sqlite.row import COLUMNS, JobRow, changing_columns, columns_of_run, record_of, repaired_columns
from taskflow.broker.sqlite.shrinking import Shrinker
from taskflow.broker.sqlite.soundness import inspect_row, is_sound
from taskflow.broker.sqlite.statements import Statements, execute_rows, fetch_rows, inserts
from taskflow.broker.sqlite.tally import Tally
from taskflow.model.clock import Clock
from taskflow.model.envelope import tags_in
from taskflow.model.job_schema import DEFAULT_QUEUE
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.stored_values import Unreadable

_QUEUE: Final = COLUMNS.index("queue")


@dataclass
class Scrubbed:
    """The progress of upkeep's scan of all jobs, and the names that it has found in use since it started."""

    seq: int = -(1 << 63)
    names: set[object] = field(default_factory=set)


class NeedsRepair(Exception):
    """Raised if a row must be repaired in a read-only transaction. The verb must run again in a transaction that may write."""


class JobTable:
    """The rows of jobs, for one connection, and what its transaction has changed and must announce. Call
    `begin` once per verb, `flush` before a commit, and `forget` after a rollback."""

    def __init__(
        self, connection: sqlite3.Connection, sql: Statements, clock: Clock, rules: Rules, shrinker: Shrinker | None = None
    ) -> None:
        self.connection = connection
        self.sql = sql
        self.clock = clock
        self.rules = rules
        self.shrinker = shrinker
        self.queues = queue_names(connection, sql)
        self.job_names = job_names(connection, sql)
        self.tally = Tally(connection, sql)
        self.lease_cache = LeaseCache()
        self.announcement = Announcement()
        self.scrubbed = Scrubbed()
        self._put_off: list[JobRow] | None = None
        self._ends = list[bytes]()
        self.settled_seq: int | None = None
        """The seq of the job whose settlement is being applied."""
        self.may_write = self.has_repaired = False
        self.now = self.steady = 0

    def begin(self, *, may_write: bool) -> None:
        """Read the clocks once per verb, inside the transaction, so that a later commit has a later time."""
        self.may_write = may_write
        self.has_repaired = False
        self.now = self.clock.wall()
        self.steady = self.clock.steady()

    def flush(self) -> None:
        self.tally.flush()
        if self._ends:
            self._note_ends()

    def forget(self) -> None:
        """Discard the counts, wake-ups and names of a transaction that was rolled back."""
        self.tally.forget()
        self._ends.clear()
        self.queues.forget()
        self.job_names.forget()
        self.lease_cache.forget()
        self.scrubbed = Scrubbed()
        self.announcement = Announcement()

    def take_announcement(self) -> Announcement:
        announcement, self.announcement = self.announcement, Announcement()
        return announcement

    # --- rows -------------------------------------------------------------------------------------------------

    def job(self, job_id: bytes) -> JobRow | None:
        return self._first("job_by_id", job_id)

    def job_by_seq(self, seq: int) -> JobRow | None:
        return self._first("job_by_seq", seq)

    def jobs(self, statement: str, *parameters: object) -> list[JobRow]:
        rows = self.connection.execute(self.sql[statement], parameters).fetchall()
        return [self._job(row) for row in rows]

    def leased(self, statement: str, *parameters: object) -> list[JobRow]:
        """Return the leased jobs that a statement finds. Jobs whose claims were unsound are READY again, and are left out."""
        return [job for job in self.jobs(statement, *parameters) if job.claim is not None]

    def save(self, job: JobRow) -> None:
        if self._put_off is not None:
            self._put_off.append(job)
        else:
            self.connection.execute(self.sql["save_job"], changing_columns(job))

    @contextmanager
    def saving_together(self) -> Iterator[None]:
        """Save jobs together at the end of the `with` block, in one step. This is only
        for runs that affect no other job and change only what `save_runs` writes."""
        put_off = self._put_off = list[JobRow]()
        try:
            yield
        finally:
            self._put_off = None
        self.execute_rows("save_runs", [columns_of_run(job) for job in put_off])

    def record(self, job: JobRow) -> Record:
        return record_of(job, self.queues.name(job.queue), self.job_names.read(job.name))

    def execute_rows(self, statement: str, rows: Sequence[tuple[object, ...]], *shared: object) -> None:
        execute_rows(self.connection, self.sql, statement, rows, shared)

    def insert_rows(self, statement: str, rows: Sequence[tuple[object, ...]]) -> int:
        """Insert the rows, and return how many were added."""
        return sum(cursor.rowcount for cursor in inserts(self.connection, self.sql, statement, rows))

    def fetch_rows(self, statement: str, rows: Sequence[tuple[object, ...]], *shared: object) -> list[tuple[Any, ...]]:
        return fetch_rows(self.connection, self.sql, statement, rows, shared)

    def _first(self, statement: str, *parameters: object) -> JobRow | None:
        row = self.connection.execute(self.sql[statement], parameters).fetchone()
        return None if row is None else self._job(row)

    # --- unsound rows -------------------------------------------------------------------------------------------

    def _job(self, row: tuple[Any, ...]) -> JobRow:
        """Return a row as a job, repaired if it is unsound. Raises NeedsRepair if this transaction may not write."""
        if is_sound(row) and self.queues.has(row[_QUEUE]):
            return JobRow(*row)
        job, is_repaired, oversized = inspect_row(row, self.now, self._strange_queue(row[_QUEUE]))
        if is_repaired:
            self._repair(job, oversized)
        return job

    def _strange_queue(self, number: Any) -> Unreadable | None:
        return None if type(number) is not int or self.queues.has(number) else Unreadable("queue", f"number {number} has no name", b"")

    def _repair(self, job: JobRow, oversized: Sequence[str]) -> None:
        if not self.may_write:
            raise NeedsRepair
        for column in oversized:
            self.connection.execute(self.sql["keep_oversized"], (column, column, job.seq))
        if not self.queues.has(job.queue):
            job.queue = self.queues.number(DEFAULT_QUEUE)
        self.connection.execute(self.sql["repair_job"], repaired_columns(job))
        self.connection.execute(self.sql["drop_tags"], (job.seq,))
        self.execute_rows("add_tags", [(tag, job.id) for tag in tags_in(job.extras)])
        self.has_repaired = True
        self.lease_cache.forget()
        self.tally.recount()
        if job.status is Status.READY:
            self.announce_ready(job.queue)

    # --- what the transaction announces -----------------------------------------------------------------------------

    def announce_ready(self, queue: int, number: int = 1) -> None:
        self.announcement.ready[self.queues.name(queue)] += number

    def has_end_subscriber(self) -> tuple[bool, bool]:
        """Return whether a living session subscribes to ends without a settlement, and whether some are noted."""
        [(has_subscriber, are_noted)] = self.connection.execute(self.sql["has_end_subscriber"])
        return bool(has_subscriber), bool(are_noted)

    def _note_ends(self) -> None:
        """Note jobs that have ended without a settlement, for upkeep to tell."""
        ended, self._ends = self._ends, []
        has_subscriber, are_noted = self.has_end_subscriber()
        if not has_subscriber:
            return
        if not are_noted:
            self.announcement.has_ends = True
        self.insert_rows("note_ends", [(job_id,) for job_id in ended])
        if dropped := self.connection.execute(self.sql["drop_ends"], (self.rules.most_ends,)).rowcount:
            self.connection.execute(self.sql["count_dropped_ends"], (dropped,))
