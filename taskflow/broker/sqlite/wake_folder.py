"""Manages the folder beside the store's file through which senders find listeners.

A listener NAME has a socket, NAME, and up to three empty files:

NAME.t-HASH-HASH  lists the hashes of the topics that it listens to, other than jobs, or "any" if there are too many.
NAME.j            exists while it awaits the end of jobs.
SINCE.NAME        exists while it waits for jobs. SINCE is the time at which it began to wait.

A sender takes a waiting listener by removing its SINCE file. Only one sender succeeds, so a listener gets one nudge, however many senders
there are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterable
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Final

from taskflow.broker.sqlite.store_file import PRIVATE, WAKE, StoreFile, open_beside
from taskflow.model.errors import BrokerRefused

_MAX_ADDRESS_BYTES: Final = 100
"""The maximum length of a socket's path. Linux allows 107 bytes, other systems 103."""

_MAX_TOPICS: Final = 20
"""The maximum number of topics whose hashes fit into a file name."""

_MAX_TICK: Final = 20_000_000
"""The longest time in nanoseconds between two ticks of the clock that sets the times of files."""

GONE: Final = (errno.ECONNREFUSED, errno.ENOENT)
_FILE: Final = re.compile(r"(?:([0-9a-f]{16})\.)?([0-9a-f]{8}-\d+-[0-9a-f]{12})(?:\.(j|t-[0-9a-z-]+))?")


@lru_cache(4096)
def topic_hash(topic: str) -> str:
    return "-" + blake2b(topic.encode(errors="replace"), digest_size=4).hexdigest()


def topics_file(name: str, heard: Iterable[str]) -> str:
    hashes = [topic_hash(topic) for topic in heard]
    return f"{name}.t{''.join(hashes) if len(hashes) <= _MAX_TOPICS else '-any'}"


class Listeners:
    """Derives the listeners from the names of the files in the folder. Files with other names are ignored."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = [(file, *found.groups()) for file in files if (found := _FILE.fullmatch(file)) is not None]

    @cached_property
    def names(self) -> set[str]:
        return {name for _, _, name, _ in self._files}

    @cached_property
    def waiting(self) -> list[tuple[str, str]]:
        """The files and names of the listeners that wait for jobs, newest first."""
        return [(file, name) for file, since, name, kind in sorted(self._files, reverse=True) if since and not kind]

    @cached_property
    def awaiting(self) -> list[str]:
        """The listeners that await the end of jobs."""
        return [name for _, _, name, kind in self._files if kind == "j"]

    @cached_property
    def _topics(self) -> dict[str, str]:
        return {name: kind[1:] for _, _, name, kind in self._files if kind and kind[0] == "t"}

    def hears(self, name: str, *any_of: str) -> bool:
        heard = self._topics.get(name, "")
        return heard == "-any" or any(topic_hash(topic) in heard for topic in any_of)

    def files_of(self, name: str) -> list[str]:
        return [file for file, _, of, _ in self._files if of == name]


class Folder:
    """The folder of one namespace's listeners. It is opened only if its owner can be trusted, and then used through its descriptor."""

    def __init__(self, store: StoreFile) -> None:
        self._store = store
        self._path = store.beside(WAKE)
        self._prefix = topic_hash(store.namespace)[1:] + "-"
        self._descriptor: int | None = None
        self._changed_at = 0
        self._listed: tuple[int, Listeners] | None = None

    def bind(self) -> tuple[str, socket.socket]:
        """Create a listener's socket, and its folder if missing. Return the socket's name and the socket. Raises OSError on failure."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path, 0o700)
        self._store.share(self._opened())
        self._remove_dead()
        name = f"{self._prefix}{os.getpid()}-{os.urandom(6).hex()}"
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.bind(self.address(name))
        except OSError:
            bound.close()
            raise
        self._store.share(self.address(name))
        return name, bound

    def _remove_dead(self) -> None:
        """Remove the files of listeners whose processes were killed."""
        for name in self.listeners().names:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(self.address(name))
                except OSError as error:
                    if error.errno in GONE:
                        self.forget(name)

    def listeners(self) -> Listeners:
        """Return the listeners in the folder, or none if it is missing or cannot be read."""
        try:
            folder = self._opened()
            if self._listed is not None and self._listed[0] == self._changed_at:
                return self._listed[1]
            listed_at, listeners = time.time_ns(), Listeners(file for file in os.listdir(folder) if self._prefix in file)
        except OSError:
            return Listeners(())
        # The system's clock for files advances in ticks: another change within the same tick would leave the same time.
        self._listed = (self._changed_at, listeners) if listed_at - self._changed_at > _MAX_TICK else None
        return listeners

    def address(self, name: str) -> str:
        """Return the path of a socket, through the folder's descriptor if the plain path is too long for a socket."""
        path = os.path.join(self._path, name)
        return path if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES else f"/proc/self/fd/{self._opened()}/{name}"

    def create(self, file: str) -> None:
        """Create an empty file. Raises OSError if that fails."""
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, PRIVATE, dir_fd=self._opened())
        self._store.share(descriptor)
        os.close(descriptor)

    def has(self, file: str) -> bool:
        try:
            os.stat(file, dir_fd=self._opened(), follow_symlinks=False)
        except OSError:
            return False
        return True

    def remove(self, file: str) -> bool:
        """Remove a file or socket. Return False if another process has already removed it."""
        try:
            folder = self._opened()
            mode = os.stat(file, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
                os.unlink(file, dir_fd=folder)
        except FileNotFoundError:
            return False
        except OSError:  # the file belongs to another user, and only its owner may remove it
            pass
        return True

    def forget(self, name: str) -> None:
        """Remove all of a listener's files."""
        self._listed = None
        for file in self.listeners().files_of(name):
            self.remove(file)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = self._listed = None

    def _opened(self) -> int:
        """Return the folder's descriptor, reopened if the folder was replaced. Raises OSError if it's missing, a link or another user's."""
        if self._descriptor is not None:
            found = os.lstat(self._path)
            if os.path.samestat(found, os.fstat(self._descriptor)):
                self._changed_at = found.st_mtime_ns
                return self._descriptor
            self.close()
        try:
            self._descriptor = open_beside(self._store, WAKE, os.O_RDONLY | os.O_DIRECTORY)
        except BrokerRefused as refused:
            raise PermissionError(str(refused)) from refused
        self._changed_at = os.fstat(self._descriptor).st_mtime_ns
        return self._descriptor
