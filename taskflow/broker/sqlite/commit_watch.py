"""Looks for the commits of callers' transactions, so that listeners are woken as after a commit of the writer.

SQLite tells no other connection of a commit, but `PRAGMA data_version` changes on every other connection. A transaction that has written
holds the write lock until it ends. So the first change after a verb shows that the caller's transaction has ended, and whether the
verb's job is there shows how. After a rollback nothing changes: the announcement is dropped at the next commit of another
connection, or after `LOOKED_FOR` seconds.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final

from taskflow.broker.sqlite.counts import Announcement
from taskflow.broker.sqlite.store import SqliteStore

_EVERY: Final = 0.004
_SHARE: Final = 1 / 250
"""The pause between two looks: its least length in seconds, and its share of the time since the last verb."""

LOOKED_FOR: Final = 60.0
"""The number of seconds for which a commit is looked for. Listeners find the jobs of later ones when they next look at the store."""


IS_COMMITTED: Final = 'SELECT count(*) FROM "~jobs" WHERE id = ? AND settled IS coalesce(?, settled)'
"""Whether a job is there and, unless the fence is NULL, was last settled with it."""


@dataclass(eq=False, slots=True)
class ExpectedCommit:
    """An announcement to make once the caller's transaction has committed.

    `job_id`  a job that exists then
    `fence`   the fence with which it has been settled then; None for a new job
    """

    announcement: Announcement
    job_id: bytes
    fence: bytes | None = None
    since: float = field(default_factory=time.monotonic)
    looked_at: int | None = None
    """The data version at the last look."""


class CommitWatch:
    """The expected commits of one file. The writer's thread looks for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived = list[ExpectedCommit]()
        self._expected = list[ExpectedCommit]()
        self._next_look: float | None = None

    def expect(self, commit: ExpectedCommit) -> bool:
        """Note a commit, from any thread. Return True if the writer's thread must be woken. Usually it is about to look anyway."""
        with self._lock:
            self._arrived.append(commit)
            is_soon = self._next_look is not None and self._next_look <= commit.since + _EVERY
            self._next_look = self._next_look if is_soon else commit.since + _EVERY
            return not is_soon

    @property
    def pause(self) -> float | None:
        """The number of seconds until the next look, or None if no commit is expected."""
        next_look = self._next_look
        return None if next_look is None else max(0.0, next_look - time.monotonic())

    def look(self, store: SqliteStore) -> Announcement:
        """Return the announcements of the transactions that have committed."""
        self._take_arrived()
        found = Announcement()
        [(version,)] = store.connection.execute("PRAGMA data_version").fetchall()
        self._expected = [commit for commit in self._expected if self._is_open(commit, version, store, found)]
        with self._lock:
            if not (self._expected or self._arrived):
                self._next_look = None
        return found

    def _take_arrived(self) -> None:
        with self._lock:
            self._expected += self._arrived
            self._arrived.clear()
            now = time.monotonic()
            self._next_look = now + max(_EVERY, (now - self._expected[-1].since) * _SHARE) if self._expected else None

    def _is_open(self, commit: ExpectedCommit, version: int, store: SqliteStore, found: Announcement) -> bool:
        """Return True if the transaction has not ended yet, as far as can be seen."""
        before, commit.looked_at = commit.looked_at, version
        if before == version:
            return time.monotonic() - commit.since < LOOKED_FOR
        [(is_committed,)] = store.connection.execute(store.sql[IS_COMMITTED], (commit.job_id, commit.fence)).fetchall()
        if is_committed:
            found.add(commit.announcement)
        return not is_committed and before is None

    def forget(self) -> None:
        with self._lock:
            self._arrived.clear()
            self._expected.clear()
            self._next_look = None
