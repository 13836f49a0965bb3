"""Runs groups of verbs, each group in one transaction; and the reads of the console beside the writer, each in its own."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.checkpoint import Checkpointer, side_file, wait_for_checkpoint
from taskflow.broker.sqlite.commit_watch import CommitWatch
from taskflow.broker.sqlite.connect import INCREMENTAL, connect_for_reading, connect_for_writing, look
from taskflow.broker.sqlite.counts import Announcement
from taskflow.broker.sqlite.errors import broker_error, is_about_the_file, is_busy, is_full
from taskflow.broker.sqlite.forks import keep_open
from taskflow.broker.sqlite.statements import Statements, pragma
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile, check_beside
from taskflow.broker.sqlite.tables import version_of
from taskflow.model.clock import Clock
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable, SessionLost, StoreFull


class Durability(IntEnum):
    """How durable the changes of a verb must be. The strictest verb in a group decides for the whole group."""

    READ = 0
    """Nothing is written, and no write lock is taken."""

    NORMAL = 1
    """For claims, heartbeats and upkeep: the log is written but not flushed. If the process is killed, nothing is lost.

    A power failure may lose changes made since the last flush. A job whose claim is lost is READY again. Its worker, which lost power
    too, cannot settle it, because the next claim has another id. So a flush would gain nothing, and would cost several times as much.
    """

    FULL = 2
    """For settlements, cancellations and console operations: the log is flushed before the answer."""

    GROWING = 3
    """For verbs that add jobs: in addition, a full disk is StoreFull."""


@dataclass(eq=False, slots=True)
class QueuedVerb:
    """A verb, and its answer or error. `accepted_at` is a `time.monotonic()` value."""

    verb: Callable[[SqliteStore], Any]
    durability: Durability
    accepted_at: float
    answer: Any = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)


_SHORT_PAUSE: Final = 0.000_5
_LONG_PAUSE: Final = 0.005
_MAX_SHORT_PAUSES: Final = 400
_MIN_PAUSES: Final = 50
"""The pauses in seconds between attempts to begin: short ones for as long as some transactions take, then longer ones."""


Announce = Callable[[Announcement, SqliteStore], None]


class Transactions:
    """Runs groups of verbs for the writer's thread. Opens the file on the first call, and reopens it after an error that closed it."""

    def __init__(self, store: StoreFile, clock: Clock, announce: Announce) -> None:
        self.store = store
        self._clock = clock
        self._announce = announce
        self._sql = Statements(store.namespace)
        self._file: OpenFile | None = None
        self.commits = CommitWatch()

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def run(self, group: Sequence[QueuedVerb]) -> None:
        """Run the group's verbs, and give each its answer or its error."""
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
        if announcement:
            self._announce(announcement, file.store)
        if announcement.is_upkeep:
            file.shrink()

    def _begin(self, file: OpenFile, group: Sequence[QueuedVerb]) -> None:
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

    def _fail(self, group: Sequence[QueuedVerb], error: BaseException) -> None:
        """Give the verbs an error. If it is about the file, the next call opens the file again."""
        for number, queued in enumerate(group):
            queued.answer, queued.error = None, error
            if number and is_about_the_file(error):
                queued.error = BrokerUnavailable(f"{self.store.path} was closed after an error: the next call opens it again")
            elif isinstance(error, sqlite3.Error):
                queued.error = broker_error(error, self.store, grows=queued.durability is Durability.GROWING)
                queued.error.__cause__ = error
        if is_about_the_file(error) or isinstance(error, BrokerRefused):
            self.close()

    def look_for_commits(self) -> None:
        """Announce the transactions of callers that have committed."""
        if self.commits.pause is None:
            return
        try:
            store = self._opened().store
            announcement = self.commits.look(store)
        except (BrokerError, sqlite3.Error) as error:
            if not is_busy(error):  # the next verb reports it
                self.commits.forget()
            return
        if announcement:
            self._announce(announcement, store)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def abandon(self) -> None:
        """In a forked child, keep the parent's connection open for ever, because even closing it could damage the file."""
        if self._file is not None:
            keep_open(self._file.store.connection)

    def migrate(self) -> Upgrade:
        """Migrate the file to this version, and close it. Runs in the calling thread, like `pending`."""
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
        connection, upgrade = connect_for_writing(self.store, self._sql)
        try:
            file = OpenFile(self.store, SqliteStore(connection, self._sql, self._clock, self.store.limits), upgrade)
        except OSError as error:
            connection.close()
            raise BrokerUnavailable(f"{self.store.path}: {error}") from error
        if before not in (None, file.identity):
            file.close()
            raise BrokerUnavailable(f"{self.store.path} was replaced while it was opened: the next call opens it again")
        return file


_NORMAL, _FULL = 1, 2
"""Values of the `synchronous` pragma (https://sqlite.org/pragma.html#pragma_synchronous)."""

_PAGES_AT_ONCE: Final = 64
_LEAST_FREE: Final = 256
"""How many free pages an upkeep gives back to the disk, if at least so many are free, and at least half of the file."""


class OpenFile:
    """A connection, its settings, and its one transaction."""

    def __init__(self, file: StoreFile, store: SqliteStore, upgrade: Upgrade) -> None:
        self.store, self.upgrade = store, upgrade
        self.identity = file.identity()
        self._file = file
        self._connection = store.connection
        self._checkpointer = Checkpointer(store.connection, file)
        self._synchronous = -1
        self._has_compiled = True
        self._connection.set_authorizer(self._note_compilation)
        self._connection.execute(pragma("busy_timeout", 0)).fetchall()  # the caller of `begin` waits instead
        [(vacuum,)] = self._connection.execute("PRAGMA auto_vacuum").fetchall()
        self._can_shrink = not file.shared and vacuum == INCREMENTAL

    def begin(self, group: Sequence[QueuedVerb]) -> None:
        """Begin the transaction of a group. It fails if another connection holds the lock."""
        durability = max(queued.durability for queued in group)
        if durability is Durability.READ:
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

    def run(self, group: Sequence[QueuedVerb]) -> BaseException | None:
        """Run the group's verbs in the transaction that has begun, and commit. If that fails, roll back, and return the error.

        An error of one of several verbs undoes this verb only.
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

    def _run(self, queued: QueuedVerb) -> None:
        """Run a verb. A refusal is an answer like any other."""
        self.store.forget()
        try:
            queued.answer = queued.verb(self.store)
        except (SessionLost, StoreFull) as refused:
            queued.error = refused

    def _run_apart(self, queued: QueuedVerb) -> None:
        """Run a verb whose error must not concern others."""
        if queued.durability is Durability.READ:
            try:
                self._run(queued)
            except Exception as error:
                queued.error = error
            return
        before = self.store.save()
        self._connection.execute("SAVEPOINT verb")
        try:
            self._run(queued)
            self.store.join(before)
        except Exception as error:
            if not self._connection.in_transaction:  # SQLite has rolled back everything
                raise
            self.store.restore(before)
            self._connection.execute("ROLLBACK TO verb")
            queued.error = error
        self._connection.execute("RELEASE verb")

    # --- the tables' version -----------------------------------------------------------------------------------------

    def _note_compilation(self, action: int, *_: object) -> int:
        """SQLite compiles each statement on first use, and all of them again after another process has changed the tables."""
        self._has_compiled |= action != sqlite3.SQLITE_PRAGMA  # a PRAGMA is compiled at every use
        return sqlite3.SQLITE_OK

    def _check_version(self, *, always: bool = False) -> None:
        """Raise BrokerRefused if another process has changed the tables. Costs nothing while they do not change."""
        if self._has_compiled or always:
            version_of(self._connection, self._file, self.store.sql)
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
            if free > max(_LEAST_FREE, pages // 2):
                # in Python 3.11, execute() gives back one page, because the statement returns no columns
                self._connection.executescript(pragma("incremental_vacuum", _PAGES_AT_ONCE))
                self._checkpointer.after_commit()

    def close(self) -> None:
        self._checkpointer.close()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


class CannotRead(Exception):
    """Raised if the file cannot be read. Then the writer runs the verb: it reports what is wrong, or opens the file again."""


class ReadTransactions:
    """Runs verbs that only read, each in its own transaction, for a thread like the writer's."""

    def __init__(self, store: StoreFile, clock: Clock) -> None:
        self.store = store
        self.commits = CommitWatch()
        self._clock = clock
        self._identity: tuple[int, int] | None = None
        self._opened: SqliteStore | None = None
        self._side_file = -1

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def run(self, group: Sequence[QueuedVerb]) -> None:
        """Run the verbs. If the file cannot be read, their error is CannotRead."""
        for queued in group:
            try:
                self._read(queued)
            except Exception as error:
                queued.error = error

    def look_for_commits(self) -> None: ...

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            os.close(self._side_file)
            with contextlib.suppress(sqlite3.Error):
                opened.connection.close()

    def abandon(self) -> None:
        """In a forked child, leave the parent's connection alone."""
        if self._opened is not None:
            keep_open(self._opened.connection)

    def _read(self, queued: QueuedVerb) -> None:
        try:
            opened = self._open()
            wait_for_checkpoint(self._side_file)
            opened.connection.execute("BEGIN")
            try:
                version_of(opened.connection, self.store, opened.sql)  # refuses tables that another process has migrated
                opened.forget()
                queued.answer = queued.verb(opened)
            finally:
                opened.connection.execute("ROLLBACK")
        except (sqlite3.Error, BrokerError, OSError) as error:
            self.close()
            raise CannotRead from error

    def _open(self) -> SqliteStore:
        """Return the open file. Raises CannotRead if the path names another one now."""
        if self._opened is None:
            self._identity = self.store.identity()
            connection = connect_for_reading(self.store)
            self._side_file = side_file(self.store)
            self._opened = SqliteStore(connection, Statements(self.store.namespace), self._clock, self.store.limits)
        if self._identity is None or self._identity != self.store.identity():
            self.close()
            raise CannotRead
        return self._opened
