"""An open file of a store, and its one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.checkpoint import Checkpointer
from taskflow.broker.sqlite.disk_reserve import DiskReserve
from taskflow.broker.sqlite.migrations import version_of
from taskflow.broker.sqlite.queued_verb import Durability, QueuedVerb
from taskflow.broker.sqlite.self_deadlock import SelfDeadlockDetector, writing
from taskflow.broker.sqlite.shrinking import Shrinker
from taskflow.broker.sqlite.statements import pragma
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model.errors import BrokerRefused, SessionLost, StoreFull

_NORMAL, _FULL = 1, 2
"""Values of the `synchronous` pragma (https://sqlite.org/pragma.html#pragma_synchronous)."""

_UNLIMITED: Final = 4_294_967_294


class OpenFile:
    """An open file: a connection, its settings, and its one transaction."""

    def __init__(self, store: StoreFile, disk_reserve: DiskReserve, transitions: Transitions, shrinker: Shrinker, upgrade: Upgrade) -> None:
        self.transitions = transitions
        self._shrinker = shrinker
        self.upgrade = upgrade
        self.identity = store.identity()
        self._store = store
        self._disk_reserve = disk_reserve
        self._connection = transitions.connection
        self.deadlock_detector = SelfDeadlockDetector(store, transitions.connection)
        self.checkpointer = Checkpointer(transitions.connection, store)
        self._synchronous = -1
        self._max_pages = _UNLIMITED
        self._has_compiled = True
        self._connection.set_authorizer(self._note_compilation)
        [(self._page_size,)] = transitions.connection.execute("PRAGMA page_size")
        self._connection.execute(pragma("busy_timeout", 0)).fetchall()  # the caller of `attempt` waits instead

    def attempt(self, group: Sequence[QueuedVerb]) -> BaseException | None:
        """Run the group in one transaction. Return None on success; after an error, roll back and return the error."""
        try:
            self._begin(group)
        except Exception as error:  # nothing has begun, so all caches are still correct
            return error
        try:
            may_write = any(queued.durability is not Durability.READ for queued in group)
            for queued in group:
                self._run(queued, may_write)
            self.transitions.flush()
            self._check_version()
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            return self._refusal() or error
        else:
            self.checkpointer.after_commit()
            if self._shrinker.wants_checkpoint:
                self._shrinker.checkpointed(is_cut=self.checkpointer.checkpoint("RESTART"))
            return None
        finally:
            writing.discard(self)

    def free_inside(self) -> int:
        """Return the total size in bytes of the file's free pages."""
        try:
            [(pages,)] = self._connection.execute("PRAGMA freelist_count")
        except sqlite3.Error:  # the next writer reports it
            return 0
        return int(pages) * int(self._page_size)

    def _begin(self, group: Sequence[QueuedVerb]) -> None:
        durability = max(queued.durability for queued in group)
        if durability is Durability.READ:
            self._connection.execute("BEGIN")
            return
        self._set_synchronous(_NORMAL if durability is Durability.NORMAL else _FULL)
        self._set_max_pages(durability >= Durability.FULL_AND_NEW)
        self._connection.execute("BEGIN IMMEDIATE")
        writing.add(self)

    def _run(self, queued: QueuedVerb, may_write: bool) -> None:
        """Run a verb. A refusal changes nothing and is an answer like any other; any other error rolls back the whole group."""
        self.transitions.begin(may_write=may_write)
        queued.answer = queued.error = None
        try:
            queued.answer = queued.verb(self.transitions)
        except (SessionLost, StoreFull) as refused:
            queued.error = refused

    # --- the tables' version -----------------------------------------------------------------------------------------

    def _note_compilation(self, action: int, *_: object) -> int:
        """Record that SQLite compiled a statement. It compiles each statement on
        first use, and all of them again after another process has changed the tables."""
        self._has_compiled |= action != sqlite3.SQLITE_PRAGMA  # a PRAGMA is compiled at every use
        return sqlite3.SQLITE_OK

    def _check_version(self) -> None:
        """Raise BrokerRefused if another process has migrated the tables. Costs nothing while they do not change."""
        if self._has_compiled:
            version_of(self._connection, self._store, self.transitions.sql)
            self._has_compiled = False

    def _refusal(self) -> BrokerRefused | None:
        """Return the refusal if an attempt failed because of a migration, otherwise None."""
        try:
            self._check_version()
        except BrokerRefused as refusal:
            return refusal
        except sqlite3.Error:
            return None
        return None

    def _roll_back(self) -> None:
        self.transitions.forget()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:  # SQLite has already rolled back
            return

    def close(self) -> None:
        self.checkpointer.close()
        try:
            self._connection.close()
        except sqlite3.Error:
            return

    # --- what is set between transactions, when it changes --------------------------------------------------------------

    def _set_synchronous(self, value: int) -> None:
        if value != self._synchronous:
            self._connection.execute(pragma("synchronous", value))
            self._synchronous = value

    def _set_max_pages(self, is_limited: bool) -> None:
        most = self._disk_reserve.most_pages(self._page_size) if is_limited else None
        value = _UNLIMITED if most is None else min(most, _UNLIMITED)
        if value != self._max_pages:
            self._connection.execute(pragma("max_page_count", value)).fetchall()
            self._max_pages = value
