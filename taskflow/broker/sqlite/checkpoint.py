"""Carrying the write-ahead log over into the file, one process at a time.

SQLite before 3.51.3 can corrupt a file when one connection begins a checkpoint while another's commit starts the log anew
(https://sqlite.org/wal.html#walresetbug), and distributions ship older ones. So `wal_autocheckpoint` is off, a lock on a side file
keeps checkpoints of different connections apart, and the mode is RESTART, which holds the write lock all the while: no commit can start
the log anew under it. (PASSIVE would not hold it.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from typing import Final

from taskflow.broker.sqlite.place import MIB, Place
from taskflow.broker.sqlite.statements import pragma

MOST_COMMITS: Final = 400
MOST_CHANGES: Final = 20_000
"""After so many commits or changed rows of its own a connection makes a checkpoint: the log stays at some 10 MiB for each process."""

SMALL: Final = 4 * MIB
"""A log that has never grown beyond this is left alone."""

_PATIENCE_MS: Final = 100


class Checkpointer:
    """Belongs to one connection and its thread. `after_commit` is called after every commit."""

    def __init__(self, connection: sqlite3.Connection, place: Place) -> None:
        self._connection = connection
        self._log = place.beside("-wal")
        self._timeout_ms = round(place.timeout * 1_000)
        self._lock = os.open(place.beside("-checkpoint"), os.O_CREAT | os.O_RDWR, 0o666)
        self._commits = 0
        self._changes = connection.total_changes

    def after_commit(self) -> None:
        self._commits += 1
        if self._commits >= MOST_COMMITS or self._connection.total_changes - self._changes >= MOST_CHANGES:
            self._commits = 0
            self._changes = self._connection.total_changes
            if self._size() > SMALL:
                self.checkpoint()

    def checkpoint(self) -> None:
        """Now, unless another connection is at it. One that cannot be completed (a long reader) is tried again later."""
        with contextlib.suppress(OSError), contextlib.suppress(sqlite3.Error):
            # flock and not lockf: POSIX locks are the process's, and would not keep two brokers of one process apart.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                self._wait_at_most(_PATIENCE_MS)
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            finally:
                self._wait_at_most(self._timeout_ms)
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._lock)

    def _size(self) -> int:
        try:
            return os.stat(self._log).st_size
        except OSError:
            return 0

    def _wait_at_most(self, milliseconds: int) -> None:
        self._connection.execute(pragma("busy_timeout", milliseconds))
