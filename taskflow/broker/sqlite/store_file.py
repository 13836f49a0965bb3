"""Describes the file of a store, the limits on its size, and the files beside it."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

LOG: Final = "-wal"
INDEX: Final = "-shm"
"""Suffixes of the files that SQLite keeps beside the store: the write-ahead log, and the log's index, which contains the write lock."""

JOURNAL: Final = "-journal"
"""The suffix of a rollback journal, which SQLite uses for a file without a
write-ahead log. SQLite writes any journal that it finds back into the file."""

SIDE: Final = "-taskflow"
"""The suffix of taskflow's own file beside the store: its lock is for checkpoints (checkpoint.py)."""

WAKE: Final = "-wake"
"""The suffix of the folder of listeners: see wake_folder.py."""


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """Limits on the space that a store may use.

    `max_pages`    pages of the file beyond which `enqueue` is refused; None for no limit except the disk
    `capacity`     live jobs beyond which `enqueue` is refused; None for no limit
    """

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

    def identity(self, ending: str = "") -> tuple[int, int] | None:
        """Return the device and inode of this file, or of one beside it, which distinguish
        it from a later file of the same name. Return None if it is missing."""
        try:
            found = os.stat(self.beside(ending))
        except OSError:
            return None
        return found.st_dev, found.st_ino
