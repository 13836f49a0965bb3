"""Which file a broker keeps its jobs in, and on what terms."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20

LOG: Final = "-wal"
INDEX: Final = "-shm"
"""What SQLite keeps beside a file while it is in use: the log, and its index, on which all wait for the lock to write."""

JOURNAL: Final = "-journal"
"""Beside a file that has no log yet. SQLite writes a journal that it finds back into the file."""

SIDE: Final = "-checkpoint"
RESERVE: Final = "-reserve"
WAKE: Final = "-wake"
"""What we keep there: see wal_files.py, checkpoint.py, disk_reserve.py and wakeups.py."""

LOG_LIMIT: Final = 6 * MIB
"""Beyond this the write-ahead log is carried over into the file and cut off."""


SMALL_LOG_LIMIT: Final = MIB
"""The same on a disk that is nearly full, where the reserve must be enough to carry it over."""

_AMPLE: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class Room:
    """How much room a store may take.

    `disk_reserve` bytes set aside beside the file and given up when the disk is full, so that settlements still find room: as much as the
                 log may take when it is carried over into the file, and as much again; 0 for none
    `max_pages`  pages of the file beyond which `enqueue` is refused; None for as many as the disk holds
    `capacity`   live jobs beyond which `enqueue` is refused; None for as many as there is room for
    """

    disk_reserve: int = 2 * SMALL_LOG_LIMIT
    max_pages: int | None = None
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFile:
    """`path` is real: absolute, and no link. `timeout` is in seconds, the longest wait for another process's lock.

    If `migrates` is false, a file whose tables are missing or older is refused.
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
        """Give what we made beside the file the file's own rights, as SQLite does; its owner's alone while the file is missing."""
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(os.stat(self.path).st_mode) & 0o666 if os.path.exists(self.path) else 0o600
            is_folder = os.path.isdir(path)
            os.chmod(path, mode | (mode & 0o444) >> 2 if is_folder else mode)

    def free_room(self) -> int:
        """Bytes on the disk that this user may still take."""
        disk = os.statvfs(os.path.dirname(self.path))
        return disk.f_bavail * disk.f_frsize

    def is_scarce(self) -> bool:
        """The disk is nearly full: somebody else may take the rest at any time."""
        return self.room.disk_reserve > 0 and self.free_room() < _AMPLE

    def identity(self, ending: str = "") -> tuple[int, int] | None:
        """Tells this file, or one beside it, from another one that has taken its name; None when there is none."""
        try:
            found = os.stat(self.beside(ending))
        except OSError:
            return None
        return found.st_dev, found.st_ino
