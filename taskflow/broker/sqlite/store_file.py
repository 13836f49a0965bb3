"""Describes the file of a store, the limits on its size, and the files beside it."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

MIB: Final = 1 << 20

LOG: Final = "-wal"
INDEX: Final = "-shm"
"""Suffixes of the files that SQLite keeps beside the store: the write-ahead log, and the log's index, which contains the write lock."""

JOURNAL: Final = "-journal"
"""The suffix of a rollback journal, which SQLite uses for a file without a
write-ahead log. SQLite writes any journal that it finds back into the file."""

SIDE: Final = "-taskflow"
"""The suffix of taskflow's own file beside the store. It begins with a record of the log and the index that
belong to the store (wal_files.py), the rest is the disk reserve, and its lock is for checkpoints and openings."""

RECORD_BYTES: Final = 48

WAKE: Final = "-wake"
"""The suffix of the folder of listeners: see wake_folder.py."""

LOG_LIMIT: Final = 6 * MIB
"""The size in bytes beyond which the write-ahead log is copied into the file and truncated."""


SMALL_LOG_LIMIT: Final = MIB
"""The same limit for a nearly full disk, where the reserve must be large enough to copy the log."""

AMPLE: Final = 64 * MIB
"""The free space in bytes below which a disk counts as nearly full."""


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """Limits on the space that a store may use.

    `disk_reserve` bytes reserved in the side file, and released when the disk is full so that settlements still find space; 0 for none. By
                   default it is twice the limit on the log, because copying the log into the file needs as much space again
    `max_pages`    pages of the file beyond which `enqueue` is refused; None for no limit except the disk
    `capacity`     live jobs beyond which `enqueue` is refused; None for no limit
    """

    disk_reserve: int = 2 * SMALL_LOG_LIMIT
    max_pages: int | None = None
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """Which files are opened.

    `migrates` True: the first verb creates or migrates the tables. False: verbs are refused until `migrate` is called
    `owner`    the number of a user who may own the file; this user and root always may
    """

    migrates: bool = True
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFile:
    """The file of a store, and how it is used. `path` is absolute and not a link; `given` is what the user gave, made absolute.
    `timeout` is the maximum time in seconds to wait for another process's lock.
    """

    path: str
    namespace: str
    shared: bool
    timeout: float
    limits: SpaceLimits
    opening: Opening = Opening()
    given: str = ""

    def uri(self, mode: Literal["ro", "rw"]) -> str:
        """Return the address by which SQLite opens the file, which it does not create then, for reading only or also for writing."""
        return f"file:{quote(self.path)}?mode={mode}"

    def beside(self, ending: str) -> str:
        return self.path + ending

    def share(self, path: str | int) -> None:
        """Give one of taskflow's own files or folders the permissions of the store file, as SQLite does with its own files. If the store
        does not exist yet, only the owner gets access. A folder's sticky bit stays."""
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(os.stat(self.path).st_mode) & 0o666 if os.path.exists(self.path) else 0o600
            found = os.stat(path).st_mode
            os.chmod(path, mode | (mode & 0o444) >> 2 | found & stat.S_ISVTX if stat.S_ISDIR(found) else mode)

    def free_space(self) -> int:
        """Return the number of bytes that this user may still use on the disk."""
        disk = os.statvfs(os.path.dirname(self.path))
        return disk.f_bavail * disk.f_frsize

    def is_scarce(self) -> bool:
        """Return True if the disk is nearly full, so that another program
        may use up the rest at any time. Always False without a disk reserve."""
        return self.limits.disk_reserve > 0 and self.free_space() < AMPLE

    def identity(self, ending: str = "") -> tuple[int, int] | None:
        """Return the device and inode of this file, or of one beside it, which distinguish
        it from a later file of the same name. Return None if it is missing."""
        try:
            found = os.stat(self.beside(ending))
        except OSError:
            return None
        return found.st_dev, found.st_ino
