"""Runs a group of verbs in one transaction. If the transaction fails, each
verb runs separately, so that only the caller of a failing verb gets the error."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.announcement import Announcement
from taskflow.broker.sqlite.commit_watch import CommitWatch
from taskflow.broker.sqlite.connect import connect_for_writing, look
from taskflow.broker.sqlite.disk_reserve import DiskReserve
from taskflow.broker.sqlite.errors import broker_error, is_about_the_file, is_busy, is_full
from taskflow.broker.sqlite.forks import keep_open
from taskflow.broker.sqlite.job_table import Scrubbed
from taskflow.broker.sqlite.open_file import OpenFile
from taskflow.broker.sqlite.ownership import check_beside
from taskflow.broker.sqlite.queued_verb import Durability, QueuedVerb
from taskflow.broker.sqlite.self_deadlock import HELD_FOR
from taskflow.broker.sqlite.shrinking import Shrinker
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.broker.sqlite.upkeep import scrub
from taskflow.broker.sqlite.wal_files import own_wal_files, record_wal_files
from taskflow.model.clock import Clock
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable
from taskflow.model.rules import Rules

_SHORT_PAUSE: Final = 0.000_5
_LONG_PAUSE: Final = 0.005
_MOST_SHORT_PAUSES: Final = 400
_LEAST_PAUSES: Final = 50
"""The pauses between attempts: their lengths in seconds, and how many there are. Short ones come
first, for about as long as some transactions take, then longer ones that use little CPU."""


Announce = Callable[[Announcement, Transitions], None]
"""Wakes the listeners that are waiting for one of the announced events, after a commit, in this process and in others."""


class Transactions:
    """Runs groups of verbs for the writer's thread. Opens the file on the first call, and reopens it after an error that closed it."""

    def __init__(self, store: StoreFile, clock: Clock, rules: Rules, announce: Announce) -> None:
        self.store = store
        self._clock = clock
        self._rules = rules
        self._announce = announce
        self._sql = Statements(store.namespace)
        self._disk_reserve = DiskReserve(store)
        self._file: OpenFile | None = None
        self._waiting = list[QueuedVerb]()
        self.commits = CommitWatch()

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def run(self, group: Sequence[QueuedVerb]) -> None:
        """Run the group's verbs, and give each its answer or its error."""
        try:
            file = self._opened()
        except BrokerError as error:
            _refuse(group, error)
            return
        admitted = [queued for queued in group if self._admits(file, queued)]
        self._run_admitted(file, admitted)
        self._announce_events(file.transitions)

    def look_for_commits(self) -> None:
        """Announce the transactions of callers that have committed."""
        if self.commits.pause is None:
            return
        try:
            transitions = self._opened().transitions
            self.commits.look(transitions)
        except (BrokerError, sqlite3.Error) as error:
            if not is_busy(error):  # the next verb reports it
                self.commits.forget()
            return
        self._announce_events(transitions)

    def _announce_events(self, transitions: Transitions) -> None:
        if announcement := transitions.take_announcement():
            self._announce(announcement, transitions)

    def close(self) -> None:
        """Close the file. Foreign files beside it are removed first, because their inodes cannot be reused while the connection is open."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with own_wal_files(self.store):
                file.close()
        except BrokerError:  # the next opening handles that
            file.close()

    def abandon(self) -> None:
        """In a forked child, keep the parent's connection open for ever, because even closing it could damage the file."""
        if self._file is not None:
            keep_open(self._file.transitions.connection)

    def migrate(self) -> Upgrade:
        """Migrate the file to this version, and close it. Runs in the calling thread, like `pending`."""
        upgrade = self._opened().upgrade
        self.close()
        return upgrade

    def pending(self) -> Upgrade:
        """Return the migrations that `migrate` would apply. Changes nothing."""
        with own_wal_files(self.store):
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
        with own_wal_files(self.store):
            check_beside(self.store)
            before = self.store.identity()
            connection, upgrade = connect_for_writing(self.store, self._sql)
            try:
                shrinker = Shrinker(connection, self.store)
                transitions = Transitions(connection, self._sql, self._clock, self._rules, shrinker)
                file = OpenFile(self.store, self._disk_reserve, transitions, shrinker, upgrade)
            except OSError as error:
                connection.close()
                raise BrokerUnavailable(f"{self.store.path}: {error}") from error
            if before not in (None, file.identity):
                file.close()
                raise BrokerUnavailable(f"{self.store.path} was replaced while it was opened: the next call opens it again")
            record_wal_files(self.store)
            return file

    def _admits(self, file: OpenFile, queued: QueuedVerb) -> bool:
        """Return False and set an error if the verb adds jobs while the disk reserve is missing: the remaining space is for settlements."""
        if queued.durability < Durability.FULL_AND_NEW or self._disk_reserve.is_there() or self._disk_reserve.restore(0):
            return True
        file.checkpointer.checkpoint("TRUNCATE")  # frees the space that the log has taken
        if self._disk_reserve.restore(file.free_inside()):
            return True
        queued.error = self._disk_reserve.refusal()
        return False

    # --- groups ----------------------------------------------------------------------------------------------------

    def _run_admitted(self, file: OpenFile, group: Sequence[QueuedVerb]) -> None:
        if not group:
            return
        error = self._attempt(file, group)
        if error is None:
            return
        if is_busy(error):
            self._give_up(file, group, error)
            return
        if isinstance(error, BrokerRefused):  # the error concerns the whole file
            self.close()
            _refuse(group, error)
            return
        for number, queued in enumerate(group):
            if self._file is not file:
                _refuse(group[number:], BrokerUnavailable(f"{self.store.path} was closed after an error: the next call opens it again"))
                return
            self._run_alone(file, queued)

    def _attempt(self, file: OpenFile, group: Sequence[QueuedVerb]) -> BaseException | None:
        """Attempt to run the group. While another process holds the lock, retry for as long as a call may wait in total.

        SQLite's own waiting is not used. Its pauses grow to 100 ms, so if another process keeps retaking the lock at once, it may take
        seconds to find the lock free. With short pauses, two busy processes can share the file (measured: 57,000 jobs/s instead of 800).
        """
        deadline = min(queued.accepted_at for queued in group) + self.store.timeout
        pauses, detector = 0, file.deadlock_detector
        while (error := file.attempt(group)) is not None and is_busy(error) and (time.monotonic() < deadline or pauses < _LEAST_PAUSES):
            if pauses == 0 or pauses >= _MOST_SHORT_PAUSES:
                detector.look()
            time.sleep(_SHORT_PAUSE if pauses < _MOST_SHORT_PAUSES and not detector.is_suspected else _LONG_PAUSE)
            pauses += 1
            if detector.is_suspected:
                return error
        if pauses and error is None:
            detector.forget()
        return error

    def _give_up(self, file: OpenFile, group: Sequence[QueuedVerb], error: BaseException) -> None:
        """Refuse verbs that did not get the lock. If a transaction of this process holds it, those that
        send jobs are refused early, and the others wait together with verbs that arrive now."""
        detector, now = file.deadlock_detector, time.monotonic()
        for queued in group:
            if detector.is_suspected and queued.durability is Durability.FULL_AND_SENT and now - queued.accepted_at >= HELD_FOR:
                queued.error = detector.refusal()
            elif detector.is_suspected and now < queued.accepted_at + self.store.timeout:
                self._waiting.append(queued)
            else:
                queued.error = self._broker_error(error)

    def take_waiting(self) -> list[QueuedVerb]:
        """Return the verbs of the last group that must run again, with the next group."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _run_alone(self, file: OpenFile, queued: QueuedVerb) -> None:
        error = self._attempt(file, [queued])
        if isinstance(error, sqlite3.IntegrityError) and self._scrub_all(file):
            error = self._attempt(file, [queued])
        if error is not None and is_full(error) and queued.durability < Durability.FULL_AND_NEW:
            error = self._run_on_disk_reserve(file, queued)
        if error is None:
            return
        if is_busy(error):
            self._give_up(file, [queued], error)
            return
        queued.error = self._broker_error(error)
        if is_about_the_file(error):
            self.close()

    def _scrub_all(self, file: OpenFile) -> bool:
        """Repair all rows, because one that another program changed may violate a constraint. Return False if that fails."""
        file.transitions.scrubbed = Scrubbed()
        while True:
            scrubbing = QueuedVerb(scrub, Durability.NORMAL, time.monotonic())
            if self._attempt(file, [scrubbing]) is not None:
                return False
            if scrubbing.answer:
                return True

    def _run_on_disk_reserve(self, file: OpenFile, queued: QueuedVerb) -> BaseException | None:
        """Release the reserve and attempt the verb again. After the checkpoint,
        the log is written from its start again, so only the file needs to grow."""
        self._disk_reserve.release()
        file.checkpointer.checkpoint("RESTART")
        error = self._attempt(file, [queued])
        if error is None or not is_full(error):
            return error
        full = BrokerUnavailable(f"{self.store.path}: the disk is full, and so is the reserve: free space on the disk")
        full.__cause__ = error
        return full

    def _broker_error(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        refusal = broker_error(error, self.store)
        refusal.__cause__ = error
        return refusal


def _refuse(group: Sequence[QueuedVerb], error: BaseException) -> None:
    for queued in group:
        queued.error = error
