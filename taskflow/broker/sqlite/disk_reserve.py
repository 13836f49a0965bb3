"""Reserves disk space for settlements. On a full disk even a DELETE fails, because it is first written to the log."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from taskflow.broker.sqlite.ownership import open_beside
from taskflow.broker.sqlite.store_file import MIB, RECORD_BYTES, SIDE, StoreFile
from taskflow.model.errors import StoreFull


class DiskReserve:
    """The part of the side file that occupies the reserved space. New jobs are refused while it is missing.

    Several processes share it. A process that finds the disk full cuts it off; a process that enqueues must restore it first.
    """

    def __init__(self, store: StoreFile) -> None:
        self._store = store
        self._path = store.beside(SIDE)
        self._size = store.limits.disk_reserve

    def is_there(self) -> bool:
        try:
            return self._size == 0 or os.stat(self._path).st_size >= RECORD_BYTES + self._size
        except OSError:
            return False

    def release(self) -> None:
        """Give the reserved space back to the disk."""
        with contextlib.suppress(OSError), self._opened(os.O_RDWR) as file:
            os.ftruncate(file, RECORD_BYTES)

    def restore(self, free_inside: int) -> bool:
        """Restore the reserve if that leaves the same amount of space free, on the disk or inside the
        database, because settlements need that too. Return True if the reserve exists afterwards."""
        if self.is_there():
            return True
        try:
            return self._store.free_space() + free_inside >= self.needs and self._make()
        except OSError:
            self.release()
            return False

    @property
    def needs(self) -> int:
        """The number of bytes that must be free before the reserve can be restored."""
        return 2 * self._size

    def refusal(self) -> StoreFull:
        needed = f"new jobs need {self.needs / MIB:g} MiB free on it, or half of that there and half inside the file"
        return StoreFull(f"{self._store.path}: the disk is full, {needed}: let workers catch up, or free space on the disk")

    def most_pages(self, page_size: int) -> int | None:
        """Return the number of pages to which new jobs may grow the file, so that the log can still be copied into it; None for no limit.

        Free pages inside the file count as free space, because using them does not grow it.
        """
        limits = [self._store.limits.max_pages, None if (most := self._most_bytes()) is None else max(1, most // page_size)]
        return min((limit for limit in limits if limit is not None), default=None)

    def _most_bytes(self) -> int | None:
        try:
            if not self._store.is_scarce():
                return None
            return os.stat(self._store.path).st_size + max(0, self._store.free_space() - self._size) // 2
        except OSError:  # the file is gone: the next call reports it
            return None

    def _make(self) -> bool:
        with self._opened(os.O_CREAT | os.O_RDWR) as file:
            _allocate(file, self._size)
        return True

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        file = open_beside(self._store, SIDE, flags)
        try:
            yield file
        finally:
            os.close(file)


def _allocate(file: int, size: int) -> None:
    """Allocate disk space after the record, instead of only setting the file's length."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, RECORD_BYTES, size)
    else:
        os.pwrite(file, bytes(size), RECORD_BYTES)
