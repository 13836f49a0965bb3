"""An open file of a store, and its one transaction."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from typing import Final

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.checkpoint import Checkpointer
from taskflow.broker.sqlite.connect import INCREMENTAL
from taskflow.broker.sqlite.errors import is_full
from taskflow.broker.sqlite.migrations import version_of
from taskflow.broker.sqlite.queued_verb import Durability, QueuedVerb
from taskflow.broker.sqlite.statements import pragma
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.errors import BrokerRefused, SessionLost, StoreFull

_NORMAL, _FULL = 1, 2
"""Values of the `synchronous` pragma (https://sqlite.org/pragma.html#pragma_synchronous)."""

_PAGES_AT_ONCE: Final = 64
_LEAST_FREE: Final = 256
"""How many free pages an upkeep gives back to the disk, if at least so many are free, and at least half of the file."""


class OpenFile:
    """An open file: a connection, its settings, and its one transaction."""

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
                elif queued.durability is Durability.READ:
                    self._read(queued)
                else:
                    self._run_apart(queued)
            self.store.flush()
            self._check_version()
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if is_full(error):
                self._checkpointer.checkpoint("TRUNCATE")  # gives the log's space back to the disk
            return self._refusal() or error
        self._checkpointer.after_commit()
        return None

    def _run(self, queued: QueuedVerb) -> None:
        """Run a verb. A refusal is an answer like any other."""
        self.store.forget()
        try:
            queued.answer = queued.verb(self.store)
        except (SessionLost, StoreFull) as refused:
            queued.error = refused

    def _read(self, queued: QueuedVerb) -> None:
        """Run a verb that changes nothing, beside others."""
        try:
            self._run(queued)
        except Exception as error:
            queued.error = error

    def _run_apart(self, queued: QueuedVerb) -> None:
        """Run a verb whose error must not concern others."""
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
        """Record that SQLite compiled a statement. It compiles each statement on
        first use, and all of them again after another process has changed the tables."""
        self._has_compiled |= action != sqlite3.SQLITE_PRAGMA  # a PRAGMA is compiled at every use
        return sqlite3.SQLITE_OK

    def _check_version(self, *, always: bool = False) -> None:
        """Raise BrokerRefused if another process has changed the tables. Costs nothing while they do not change."""
        if self._has_compiled or always:
            version_of(self._connection, self._file, self.store.sql)
            self._has_compiled = False

    def _refusal(self) -> BrokerRefused | None:
        """Return the refusal if a transaction failed because the tables have changed, otherwise None."""
        try:
            self._check_version()
        except BrokerRefused as refusal:
            return refusal
        except sqlite3.Error:
            return None
        return None

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
