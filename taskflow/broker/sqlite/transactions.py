"""Runs groups of verbs, each group in one transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.announcement import Announcement
from taskflow.broker.sqlite.commit_watch import CommitWatch
from taskflow.broker.sqlite.connect import connect_for_writing, look
from taskflow.broker.sqlite.errors import broker_error, is_about_the_file, is_busy
from taskflow.broker.sqlite.forks import keep_open
from taskflow.broker.sqlite.open_file import OpenFile
from taskflow.broker.sqlite.ownership import check_beside
from taskflow.broker.sqlite.queued_verb import Durability, QueuedVerb
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.clock import Clock
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable

_SHORT_PAUSE: Final = 0.000_5
_LONG_PAUSE: Final = 0.005
_MOST_SHORT_PAUSES: Final = 400
_LEAST_PAUSES: Final = 50
"""The pauses between attempts: their lengths in seconds, and how many there are. Short ones come
first, for about as long as some transactions take, then longer ones that use little CPU."""


Announce = Callable[[Announcement, SqliteStore], None]
"""Wakes the listeners that are waiting for one of the announced events, after a commit, in this process and in others."""


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
                if not is_busy(error) or (time.monotonic() >= deadline and pauses >= _LEAST_PAUSES):
                    raise
            else:
                return
            time.sleep(_SHORT_PAUSE if pauses < _MOST_SHORT_PAUSES else _LONG_PAUSE)
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
