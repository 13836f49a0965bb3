"""Makes checkpoints, which copy the write-ahead log into the file. Only one connection makes a checkpoint at a time.

SQLite before 3.51.3 can corrupt a file if one connection begins a checkpoint while another's commit restarts
the log (https://sqlite.org/wal.html#walresetbug), and distributions ship older versions. So
`wal_autocheckpoint` is off, and a lock on a side file allows only one checkpoint at a time. The mode is RESTART
or TRUNCATE. Unlike PASSIVE, these modes hold the write lock, so no commit can restart the log during the checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from typing import Final, Literal

from taskflow.broker.sqlite.statements import pragma
from taskflow.broker.sqlite.store_file import LOG, SIDE, StoreFile, open_beside

MAX_COMMITS: Final = 128
MAX_CHANGES: Final = 3_000
"""The number of commits, or of changed rows, after which a connection makes a checkpoint: about 4 MiB of log."""

LOG_LIMIT: Final = 6 << 20
"""The size in bytes beyond which the log is truncated. A smaller log is overwritten from its start, because flushing takes twice as long
while a file grows."""

_BUSY_TIMEOUT_MS: Final = 100


class Checkpointer:
    """Makes one connection's checkpoints, in the thread of that connection. Call `after_commit` after every commit."""

    def __init__(self, connection: sqlite3.Connection, store: StoreFile) -> None:
        self._connection = connection
        self._store = store
        self._lock = open_beside(store, SIDE, os.O_CREAT | os.O_RDONLY)
        store.share(self._lock)  # even if it isn't new: the store may have been opened to other users in the meantime
        self._commits = 0
        self._changes = connection.total_changes

    def after_commit(self) -> None:
        self._commits += 1
        if self._commits >= MAX_COMMITS or self._connection.total_changes - self._changes >= MAX_CHANGES:
            self.checkpoint("TRUNCATE" if self._store.size(LOG) > LOG_LIMIT else "RESTART")

    def checkpoint(self, mode: Literal["RESTART", "TRUNCATE"]) -> None:
        """Make a checkpoint now, unless another connection is making one. A long read transaction may keep it from copying everything."""
        if self._lock < 0:
            return
        self._commits = 0
        self._changes = self._connection.total_changes
        try:
            # flock, not lockf: POSIX locks belong to the process, so they would not separate two brokers in one process.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        with contextlib.suppress(sqlite3.Error):  # a disk error: the next writer reports it
            self._connection.execute(pragma("busy_timeout", _BUSY_TIMEOUT_MS)).fetchall()
            self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(pragma("busy_timeout", 0)).fetchall()
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def wait(self) -> None:
        """Wait while another connection makes a checkpoint, at most 100 ms. Call this before a read transaction.

        A checkpoint waits for the readers that it finds, and the writers wait for the checkpoint. SQLite checks less and less often whether
        the readers have finished, so a reader that keeps starting again would block the checkpoint until its busy timeout ends.
        """
        give_up_at = time.monotonic() + _BUSY_TIMEOUT_MS / 1e3
        while time.monotonic() < give_up_at:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.001)
            else:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                return

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
