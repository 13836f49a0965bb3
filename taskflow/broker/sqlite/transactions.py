"""Runs groups of operations, each group in one transaction, and watches for the commits of callers' transactions."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.checkpoint import Checkpointer
from taskflow.broker.sqlite.connect import INCREMENTAL, connect, look
from taskflow.broker.sqlite.counts import Announcement
from taskflow.broker.sqlite.errors import broker_error, is_about_the_file, is_busy, is_full
from taskflow.broker.sqlite.notifier import Notifier
from taskflow.broker.sqlite.statements import Statements, pragma
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile, check_beside
from taskflow.broker.sqlite.tables import check_tables
from taskflow.model.clock import Clock
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable, SessionLost, StoreFull


class Durability(IntEnum):
    """How durable the changes of an operation must be. The strictest operation in a group decides for the whole group."""

    READ = 0
    """Nothing is written, and no write lock is taken."""

    NORMAL = 1
    """For claims, heartbeats and upkeep: the log is written but not flushed. If the process is killed, nothing is lost.

    A power failure may lose changes made since the last flush. A job whose claim is lost is READY again. Its worker, which lost power
    too, cannot settle it, because the next claim has another id. So a flush would gain nothing, and would cost several times as much.
    """

    FULL = 2
    """For settlements, cancellations and admin operations: the log is flushed before the answer."""

    GROWING = 3
    """For operations that add jobs: like FULL, but a full disk raises StoreFull instead of BrokerUnavailable."""


@dataclass(eq=False, slots=True)
class QueuedOperation:
    """An operation, and its answer or error. `accepted_at` is a `time.monotonic()` value."""

    operation: Callable[[SqliteStore], Any]
    durability: Durability
    accepted_at: float
    answer: Any = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)


_SHORT_PAUSE: Final = 0.000_5
_LONG_PAUSE: Final = 0.005
_MAX_SHORT_PAUSES: Final = 400
_MIN_PAUSES: Final = 50
"""Seconds between attempts to begin a transaction, first short, then long. There are at least `_MIN_PAUSES`, even after the deadline."""


_COMMIT_POLL_INTERVAL: Final = 0.004
_LOOK_SHARE: Final = 1 / 250
"""The pause between checks for a caller's commit: the interval in seconds, or if longer, this share of the time since the last operation in
a caller's transaction."""

COMMIT_POLL_TIMEOUT: Final = 60.0
"""Seconds for which the writer checks for an expected commit. Listeners find the jobs of later commits at their next check of the store."""

IS_COMMITTED: Final = 'SELECT count(*) FROM "~jobs" WHERE id = ? AND settled IS coalesce(?, settled)'
"""Returns 1 if a job exists and, unless the fence is NULL, was last settled with this fence. Otherwise returns 0."""


@dataclass(eq=False, slots=True)
class ExpectedCommit:
    """An announcement to make once the caller's transaction has committed.

    `job_id`  the job that exists after the commit
    `fence`   the fence with which the transaction settles it; None for a new job
    `since`   the `time.monotonic()` value at the operation

    SQLite doesn't report a commit to other connections, but their `PRAGMA data_version` changes. A transaction that has written holds the
    write lock until it ends. So the first change after an operation shows that the caller's transaction has ended, and the operation's
    job shows how. After a rollback nothing changes: the announcement is dropped at the next commit of another connection, or after
    `COMMIT_POLL_TIMEOUT` seconds.
    """

    announcement: Announcement
    job_id: bytes
    fence: bytes | None = None
    since: float = field(default_factory=time.monotonic)
    looked_at: int | None = None
    """The data version at the last check."""

    def is_open(self, version: int, store: SqliteStore, found: Announcement) -> bool:
        """Return True while the transaction may be open, up to `COMMIT_POLL_TIMEOUT`. If it committed, add `announcement` to `found`."""
        before, self.looked_at = self.looked_at, version
        if before == version:
            return time.monotonic() - self.since < COMMIT_POLL_TIMEOUT
        [(is_committed,)] = store.connection.execute(store.sql[IS_COMMITTED], (self.job_id, self.fence)).fetchall()
        if is_committed:
            found.add(self.announcement)
        return not is_committed and before is None


class Transactions:
    """Runs groups of operations for the writer's thread. Opens the file on the first call, and reopens it after an error that closed it."""

    def __init__(self, store: StoreFile, clock: Clock, notifier: Notifier | None = None) -> None:
        self.store = store
        self._clock = clock
        self._notifier = notifier
        self._sql = Statements(store.namespace)
        self._file: OpenFile | None = None
        self._expected = list[ExpectedCommit]()
        self._next_look = 0.0

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def run(self, group: Sequence[QueuedOperation]) -> None:
        """Run the group's operations, give each its answer or its error, and announce their changes after the commit."""
        try:
            file = self._opened()
            self._begin(file, group)
        except (BrokerError, sqlite3.Error) as error:
            self._fail(group, error)
            return
        failure = file.run(group)
        if failure is not None:
            self._fail(group, failure)
            return
        for queued in group:
            if isinstance(queued.error, sqlite3.Error):
                self._fail([queued], queued.error)
        announcement = file.store.take_announcement()
        self._announce(announcement, file.store)
        if announcement.is_upkeep:
            file.shrink()

    def _begin(self, file: OpenFile, group: Sequence[QueuedOperation]) -> None:
        """Begin the group's transaction. While another process holds the lock, retry for as long as a call may wait in total.

        SQLite's own waiting is not used. Its pauses grow to 100 ms, so if another process keeps retaking the lock at once, it may take
        seconds to find the lock free. With short pauses, two busy processes can share the file (measured: 57,000 jobs/s instead of 800).
        """
        deadline = min(queued.accepted_at for queued in group) + self.store.timeout
        pauses = 0
        while True:
            try:
                file.begin(group)
            except sqlite3.Error as error:
                if not is_busy(error) or (time.monotonic() >= deadline and pauses >= _MIN_PAUSES):
                    raise
            else:
                return
            time.sleep(_SHORT_PAUSE if pauses < _MAX_SHORT_PAUSES else _LONG_PAUSE)
            pauses += 1

    def _fail(self, group: Sequence[QueuedOperation], error: BaseException) -> None:
        """Give the operations this error. If it concerns the file, or is a refusal, close the file, so that the next call reopens it."""
        for number, queued in enumerate(group):
            queued.answer, queued.error = None, error
            if number and is_about_the_file(error):
                queued.error = BrokerUnavailable(f"{self.store.path} was closed after an error: the next call opens it again")
            elif isinstance(error, sqlite3.Error):
                queued.error = broker_error(error, self.store, grows=queued.durability is Durability.GROWING)
                queued.error.__cause__ = error
        if is_about_the_file(error) or isinstance(error, BrokerRefused):
            self.close()

    def _announce(self, announcement: Announcement, store: SqliteStore) -> None:
        if announcement and self._notifier is not None:
            self._notifier.announce(announcement, store)

    # --- commits of callers ----------------------------------------------------------------------------------------

    def expect(self, commit: ExpectedCommit) -> None:
        look = commit.since + _COMMIT_POLL_INTERVAL
        self._next_look = min(self._next_look, look) if self._expected else look
        self._expected.append(commit)

    @property
    def pause(self) -> float | None:
        """Seconds until the next check, or None if no commit is expected."""
        return max(0.0, self._next_look - time.monotonic()) if self._expected else None

    def look_for_commits(self) -> None:
        """Announce callers' transactions that have committed, so that they wake listeners as the writer's commits do."""
        if not self._expected:
            return
        now = time.monotonic()
        self._next_look = now + max(_COMMIT_POLL_INTERVAL, (now - self._expected[-1].since) * _LOOK_SHARE)
        found = Announcement()
        try:
            store = self._opened().store
            [(version,)] = store.connection.execute("PRAGMA data_version").fetchall()
            self._expected = [commit for commit in self._expected if commit.is_open(version, store, found)]
        except (BrokerError, sqlite3.Error) as error:
            if not is_busy(error):  # the next operation reports it
                self._expected.clear()
            return
        self._announce(found, store)

    # --- the end ---------------------------------------------------------------------------------------------------

    def end(self) -> None:
        self.close()
        if self._notifier is not None:
            self._notifier.close()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def abandon(self) -> None:
        """In a forked child, keep the parent's connection open forever, because even closing it could damage the file."""
        if self._file is not None:
            import ctypes  # takes 10 ms, and only such a child needs it

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._file.store.connection))

    def migrate(self) -> Upgrade:
        """Migrate the file to this version, close it, and return what was done. Runs in the calling thread, like `pending`."""
        upgrade = self._opened().upgrade
        self.close()
        return upgrade

    def pending(self) -> Upgrade:
        """Return the migrations that `migrate` would apply. Changes nothing."""
        check_beside(self.store)
        return look(self.store, self._sql)

    # --- the file --------------------------------------------------------------------------------------------------

    def _opened(self) -> OpenFile:
        if self._file is not None and self._file.identity != self.store.identity():
            self.close()
            raise BrokerUnavailable(f"{self.store.path} was removed or replaced while it was open: the next call opens the new file")
        if self._file is None:
            self._file = self._open()
        return self._file

    def _open(self) -> OpenFile:
        check_beside(self.store)
        before = self.store.identity()
        connection, upgrade = connect(self.store, self._sql)
        try:
            file = OpenFile(self.store, SqliteStore(connection, self._sql, self._clock, self.store.capacity), upgrade)
        except OSError as error:
            connection.close()
            raise BrokerUnavailable(f"{self.store.path}: {error}") from error
        if before not in (None, file.identity):
            file.close()
            raise BrokerUnavailable(f"{self.store.path} was replaced while it was being opened: the next call opens it again")
        return file


_NORMAL, _FULL = 1, 2
"""Values of the `synchronous` pragma (https://sqlite.org/pragma.html#pragma_synchronous)."""

_PAGES_AT_ONCE: Final = 64
_MIN_FREE: Final = 256
"""One upkeep call gives `_PAGES_AT_ONCE` pages back to the disk if more than `_MIN_FREE` pages and more than half of the file are free."""


class OpenFile:
    """A connection, its settings, and its one transaction. `upgrade` has the migrations that were applied when the file was opened."""

    def __init__(self, file: StoreFile, store: SqliteStore, upgrade: Upgrade) -> None:
        self.store, self.upgrade = store, upgrade
        self.identity = file.identity()
        self._file = file
        self._connection = store.connection
        self._checkpointer = Checkpointer(store.connection, file)
        self._synchronous = -1
        self._has_compiled = True
        self._connection.set_authorizer(self._record_compilation)
        self._connection.execute(pragma("busy_timeout", 0)).fetchall()  # the caller of `begin` waits instead
        [(vacuum,)] = self._connection.execute("PRAGMA auto_vacuum").fetchall()
        self._can_shrink = not file.shared and vacuum == INCREMENTAL

    def begin(self, group: Sequence[QueuedOperation]) -> None:
        """Begin a group's transaction. For a group that writes, raises sqlite3.Error if the write lock is taken. For one that only
        reads, raises BrokerRefused if this version of taskflow can't use the tables."""
        durability = max(queued.durability for queued in group)
        if durability is Durability.READ:
            self._checkpointer.wait()
            self._connection.execute("BEGIN")
            try:
                self._check_version(always=True)  # takes the snapshot too
            except BaseException:
                self._roll_back()
                raise
            return
        synchronous = _NORMAL if durability is Durability.NORMAL else _FULL
        if synchronous != self._synchronous:
            self._connection.execute(pragma("synchronous", synchronous))
            self._synchronous = synchronous
        self._connection.execute("BEGIN IMMEDIATE")

    def run(self, group: Sequence[QueuedOperation]) -> BaseException | None:
        """Run the group's operations in the transaction that `begin` began, and commit. Return None, or after rolling back, the error.

        If one of several operations fails, only its changes are undone.
        """
        try:
            for queued in group:
                if len(group) == 1:
                    self._run(queued)
                else:
                    self._run_apart(queued)
            self.store.flush()
            self._check_version()
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if is_full(error):
                self._checkpointer.checkpoint("TRUNCATE")  # gives the log's space back to the disk
            with contextlib.suppress(sqlite3.Error):
                try:
                    self._check_version()
                except BrokerRefused as refusal:  # the tables have changed
                    return refusal
            return error
        self._checkpointer.after_commit()
        return None

    def _run(self, queued: QueuedOperation) -> None:
        """Run an operation. A refusal counts as an answer, not as a failure."""
        self.store.forget()
        try:
            queued.answer = queued.operation(self.store)
        except (SessionLost, StoreFull) as refused:
            queued.error = refused

    def _run_apart(self, queued: QueuedOperation) -> None:
        """Run an operation so that its error doesn't affect the others: in a savepoint, unless it only reads."""
        if queued.durability is Durability.READ:
            try:
                self._run(queued)
            except Exception as error:
                queued.error = error
            return
        before = self.store.save()
        self._connection.execute("SAVEPOINT operation")
        try:
            self._run(queued)
            self.store.join(before)
        except Exception as error:
            if not self._connection.in_transaction:  # SQLite has rolled back everything
                raise
            self.store.restore(before)
            self._connection.execute("ROLLBACK TO operation")
            queued.error = error
        self._connection.execute("RELEASE operation")

    # --- the tables' version -----------------------------------------------------------------------------------------

    def _record_compilation(self, action: int, *_: object) -> int:
        """Record that SQLite is compiling a statement, which it does on first use and after another process has changed the tables."""
        self._has_compiled |= action != sqlite3.SQLITE_PRAGMA  # a PRAGMA is compiled at every use
        return sqlite3.SQLITE_OK

    def _check_version(self, *, always: bool = False) -> None:
        """Raise BrokerRefused if another process has changed the tables so that this version can't use them. Usually costs nothing."""
        if self._has_compiled or always:
            check_tables(self._connection, self._file, self.store.sql)
            self._has_compiled = False

    def _roll_back(self) -> None:
        self.store.reset()
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def shrink(self) -> None:
        """Give some free pages back to the disk if most of the file is free."""
        if not self._can_shrink:
            return
        with contextlib.suppress(sqlite3.Error):  # another connection has the lock, or the disk is full
            [(free,)] = self._connection.execute("PRAGMA freelist_count").fetchall()
            [(pages,)] = self._connection.execute("PRAGMA page_count").fetchall()
            if free > max(_MIN_FREE, pages // 2):
                # in Python 3.11, execute() frees only one page, because the statement returns no columns
                self._connection.executescript(pragma("incremental_vacuum", _PAGES_AT_ONCE))
                self._checkpointer.after_commit()

    def close(self) -> None:
        self._checkpointer.close()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
