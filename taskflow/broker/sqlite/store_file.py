"""The file of a broker, and how it is used."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20

LOG: Final = "-wal"
INDEX: Final = "-shm"
"""The suffixes of files that SQLite keeps beside the store: the log, and the log's index, which has the write lock."""

JOURNAL: Final = "-journal"
"""The suffix of a rollback journal, which belongs to a file without a log. SQLite writes it back into the file when it finds it."""

SIDE: Final = "-checkpoint"
RESERVE: Final = "-reserve"
WAKE: Final = "-wake"
"""The suffixes of files that taskflow keeps beside it: see wal_files.py, checkpoint.py, disk_reserve.py and wakeups.py."""

LOG_LIMIT: Final = 6 * MIB
"""The size of the write-ahead log in bytes beyond which it is copied into the file and truncated."""


SMALL_LOG_LIMIT: Final = MIB
"""The same for a nearly full disk, where the reserve must be enough to copy it."""

_AMPLE: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class Room:
    """The limits of the space that a store may take.

    `disk_reserve` bytes reserved beside the file, and released when the disk is full so that settlements still find space. They are as much
                   as the log may take when it is copied into the file, and as much again; 0 for none
    `max_pages`    pages of the file beyond which `enqueue` is refused; None for no limit except the disk
    `capacity`     live jobs beyond which `enqueue` is refused; None for no limit
    """

    disk_reserve: int = 2 * SMALL_LOG_LIMIT
    max_pages: int | None = None
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFile:
    """`path` is absolute and not a link. `timeout` is the longest wait in seconds for another process's lock.

    If `migrates` is False, a file whose tables are missing or older is refused.
    """

    path: str
    namespace: str
    shared: bool
    timeout: float
    room: Room
    migrates: bool = True

    def beside(self, ending: str) -> str:
        return self.path + ending

    def share(self, path: str | int) -> None:
        """Give a file of taskflow the mode of the store's file, as SQLite does. While the store is missing, only the file's owner has
        access."""
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(os.stat(self.path).st_mode) & 0o666 if os.path.exists(self.path) else 0o600
            is_folder = os.path.isdir(path)
            os.chmod(path, mode | (mode & 0o444) >> 2 if is_folder else mode)

    def free_room(self) -> int:
        """Return the bytes on the disk that this user may still take."""
        disk = os.statvfs(os.path.dirname(self.path))
        return disk.f_bavail * disk.f_frsize

    def is_scarce(self) -> bool:
        """Return True if the disk is nearly full, so that another program may take the rest at any time."""
        return self.room.disk_reserve > 0 and self.free_room() < _AMPLE

    def identity(self, ending: str = "") -> tuple[int, int] | None:
        """Return what distinguishes this file, or one beside it, from a later file of the same name; None if it is missing."""
        try:
            found = os.stat(self.beside(ending))
        except OSError:
            return None
        return found.st_dev, found.st_ino
