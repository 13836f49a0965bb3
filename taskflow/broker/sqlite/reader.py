"""Reads the file for the console, over a connection that cannot write and in a separate thread, so that the writer need not wait.

In a file with a write-ahead log, readers and the writer do not wait for each other. Reads of workers and of waiting callers stay with the
writer: they are short, and a group of verbs shares one transaction.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence

from taskflow.broker.sqlite.checkpoint import side_file, wait_for_checkpoint
from taskflow.broker.sqlite.commit_watch import CommitWatch
from taskflow.broker.sqlite.connect import connect_for_reading
from taskflow.broker.sqlite.forks import keep_open
from taskflow.broker.sqlite.migrations import version_of
from taskflow.broker.sqlite.queued_verb import QueuedVerb
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.clock import Clock
from taskflow.model.errors import BrokerError


class CannotRead(Exception):
    """Raised if the file cannot be read. The writer must run the verb: it reports what is wrong, or opens the file again."""


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

    def look_for_commits(self) -> None:
        """Do nothing: the writer looks for them."""

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
