"""Reserves disk space for settlements. On a full disk even a DELETE fails, because it is first written to the log."""

from __future__ import annotations

import contextlib
import os

from taskflow.broker.sqlite.ownership import PRIVATE
from taskflow.broker.sqlite.store_file import RESERVE, StoreFile


class DiskReserve:
    """A file beside the database that occupies the reserved space. New jobs are refused while it is missing.

    Several processes share it. A process that finds the disk full deletes the file; a process that enqueues must restore it first.
    """

    def __init__(self, store: StoreFile) -> None:
        self._store = store
        self._path = store.beside(RESERVE)
        self._size = store.room.disk_reserve

    def is_there(self) -> bool:
        return self._size == 0 or os.path.exists(self._path)

    def release(self) -> bool:
        """Delete the file. Return False if there was none."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True

    def restore(self, free_inside: int) -> bool:
        """Restore the file if that leaves the same amount of space free, on the disk or inside the
        database, because settlements need that too. Return True if the file exists afterwards."""
        if self.is_there():
            return True
        try:
            return self._store.free_room() + free_inside >= self.needs and self._make()
        except OSError:
            self.release()
            return False

    @property
    def needs(self) -> int:
        """The number of bytes that must be free before the file can be restored."""
        return 2 * self._size

    def most_bytes(self) -> int | None:
        """Return the size to which new jobs may grow the file, so that the log can still be copied into it; None for no limit.

        Free pages inside the file count as free space, because using them does not grow it.
        """
        try:
            if not self._store.is_scarce():
                return None
            return os.stat(self._store.path).st_size + max(0, self._store.free_room() - self._size) // 2
        except OSError:  # the file is gone: the next call reports it
            return None

    def _make(self) -> bool:
        with contextlib.suppress(FileExistsError):
            file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE)
            try:
                _allocate(file, self._size)
            finally:
                os.close(file)
        return True


def _allocate(file: int, size: int) -> None:
    """Allocate disk space for the file, instead of only setting its length."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.write(file, bytes(size))
