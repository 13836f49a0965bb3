"""Reads the file for the console, over a connection that cannot write and in a separate thread, so that the writer need not wait.

In a file with a write-ahead log, readers and the writer do not wait for each other. Reads of workers and of waiting callers stay with the
writer: they are short, and a group of verbs shares one transaction.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from taskflow.broker.sqlite.checkpoint import side_file, wait_for_checkpoint
from taskflow.broker.sqlite.commit_watch import CommitWatch
from taskflow.broker.sqlite.connect import connect_for_reading
from taskflow.broker.sqlite.forks import keep_open
from taskflow.broker.sqlite.migrations import version_of
from taskflow.broker.sqlite.queued_verb import QueuedVerb
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.broker.sqlite.wal_files import own_wal_files
from taskflow.model.clock import Clock
from taskflow.model.errors import BrokerError
from taskflow.model.rules import Rules


class CannotRead(Exception):
    """Raised if the file cannot be read. The writer must run the verb: it reports what is wrong, or opens the file again."""


class ReadTransactions:
    """Runs verbs that only read, each in its own transaction, for a thread like the writer's."""

    def __init__(self, store: StoreFile, clock: Clock, rules: Rules) -> None:
        self.store = store
        self.commits = CommitWatch()
        self._clock = clock
        self._rules = rules
        self._identity: tuple[int, int] | None = None
        self._transitions: Transitions | None = None
        self._side_file = -1

    @property
    def is_open(self) -> bool:
        return self._transitions is not None

    def run(self, group: Sequence[QueuedVerb]) -> None:
        """Run the verbs. Their errors are CannotRead, and NeedsRepair if a row must be repaired first."""
        for queued in group:
            try:
                queued.answer = self._read(queued.verb)
            except Exception as error:
                queued.error = error

    def look_for_commits(self) -> None:
        """Do nothing: the writer looks for them."""

    def take_waiting(self) -> list[QueuedVerb]:
        return []

    def close(self) -> None:
        transitions, self._transitions = self._transitions, None
        if transitions is not None:
            os.close(self._side_file)
            with contextlib.suppress(sqlite3.Error):
                transitions.connection.close()

    def abandon(self) -> None:
        """In a forked child, leave the parent's connection alone."""
        if self._transitions is not None:
            keep_open(self._transitions.connection)

    def _read(self, verb: Callable[[Transitions], Any]) -> Any:
        try:
            transitions = self._opened()
            wait_for_checkpoint(self._side_file)
            transitions.forget()  # names may have been dropped, and added again with other numbers
            transitions.connection.execute("BEGIN")
            try:
                version_of(transitions.connection, self.store, transitions.sql)  # refuses tables that another process has migrated
                transitions.begin(may_write=False)
                return verb(transitions)
            finally:
                transitions.connection.execute("ROLLBACK")
        except (sqlite3.Error, BrokerError, OSError) as error:
            self.close()
            raise CannotRead from error

    def _opened(self) -> Transitions:
        """Return the open file. Raises CannotRead if the path names another one now."""
        if self._transitions is None:
            with own_wal_files(self.store):
                self._identity = self.store.identity()
                connection = connect_for_reading(self.store)
            self._side_file = side_file(self.store)
            self._transitions = Transitions(connection, Statements(self.store.namespace), self._clock, self._rules)
        if self._identity is None or self._identity != self.store.identity():
            self.close()
            raise CannotRead
        return self._transitions
