"""Gives pages of the file that jobs no longer need back to the disk, in small steps during upkeep.

SQLite keeps the pages of deleted rows for later rows. An incremental vacuum moves pages from the end of the file to free places, and cuts
the end off. Pages that are free only for a moment stay, because the next burst of jobs would have to add them again.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Final

from taskflow.broker.sqlite.self_deadlock import execute_with_lock
from taskflow.broker.sqlite.statements import pragma
from taskflow.broker.sqlite.store_file import AMPLE, StoreFile
from taskflow.model.clock import to_microseconds

STEP_EVERY: Final = 0.1
"""The seconds between two steps."""

_LONGEST_STEP: Final = 0.002
"""The time in seconds after which a step ends. The other verbs of its transaction, and other writers, wait for it."""

_WATCHED_FOR: Final = to_microseconds(60.0)
"""The time for which pages must be free before they are given back."""

_PAUSE: Final = to_microseconds(20.0)
"""The time until shrinking continues after a checkpoint that failed. Each one may have kept writers waiting for 100 ms."""

_LEAST_SHARE: Final = 10
"""Fewer free pages than the file's pages divided by this number stay."""

_PAGES_A_CHECKPOINT: Final = 1_024
"""The number of pages after which a checkpoint cuts the file. To cut off 4 MiB takes about 5 ms, and 400 MiB at once would take 130 ms."""

_INCREMENTAL: Final = 2
"""The value of the `auto_vacuum` pragma (https://sqlite.org/pragma.html#pragma_auto_vacuum)."""


def allow_shrinking(connection: sqlite3.Connection, store: StoreFile) -> None:
    """Let a new file shrink later. In a file that has tables this changes nothing."""
    [(pages,)] = connection.execute("PRAGMA page_count")
    if not pages:
        execute_with_lock(connection, store, pragma("auto_vacuum", _INCREMENTAL))


class Shrinker:
    """Shrinks the file over one connection. Call `step` in each upkeep, and make a checkpoint after the commit if `wants_checkpoint`.

    A file that is shared with other programs, or was made without `allow_shrinking`, keeps its size.
    """

    def __init__(self, connection: sqlite3.Connection, store: StoreFile) -> None:
        self.wants_checkpoint = False
        self._connection = connection
        self._store = store
        self._can_shrink = not store.shared and self._pragma("auto_vacuum") == _INCREMENTAL
        self._since: int | None = None
        self._now = 0
        self._least_free = self._surplus = self._cut = 0

    @property
    def is_under_way(self) -> bool:
        return self._surplus > 0

    def step(self, now: int) -> None:
        """Give some pages back if they have been free for long enough. `now` is the time by the steady clock."""
        if not self._can_shrink:
            return
        self._now, free = now, self._pragma("freelist_count")
        self._least_free = min(self._least_free, free)
        if self._since is None:
            self._since, self._least_free = now, free
        elif now - self._since >= _WATCHED_FOR:
            self._surplus = self._surplus_of(self._least_free)
            self._since, self._least_free = now, free
            self.wants_checkpoint = self._cut > 0  # the last one failed
        if self._surplus:
            self._give_back(min(self._surplus, free))

    def checkpointed(self, *, is_cut: bool) -> None:
        """Record whether a checkpoint has cut the file. If it has not, a long read needs the old pages, so shrinking pauses."""
        self.wants_checkpoint = False
        if is_cut:
            self._cut = 0
        else:
            self._surplus, self._since = 0, self._now - _WATCHED_FOR + _PAUSE

    def _surplus_of(self, free: int) -> int:
        """Return how many of the free pages to give back. On a nearly full disk, some are kept for new jobs."""
        if free * _LEAST_SHARE < self._pragma("page_count"):
            return 0
        kept = AMPLE // self._pragma("page_size") if self._store.is_scarce() else 0
        return max(0, free - kept)

    def _give_back(self, most: int) -> None:
        given, until = 0, time.monotonic() + _LONGEST_STEP
        one_page = pragma("incremental_vacuum", 1)  # for more pages, Python 3.11 does not step through the statement
        while given < most and (not given or time.monotonic() <= until):
            self._connection.execute(one_page).close()
            given += 1
        self._surplus = max(0, self._surplus - given) if given else 0
        self._cut += given
        if self._cut >= _PAGES_A_CHECKPOINT or (self._cut and not self._surplus):
            self.wants_checkpoint = True

    def _pragma(self, name: str) -> int:
        [(value,)] = self._connection.execute(f"PRAGMA {name}")
        return int(value)
