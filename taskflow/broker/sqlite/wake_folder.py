"""The folder beside the store in which senders find the listeners. The names of its files tell them which listeners to wake.

A listener has a socket, NAME, and at most two files:

STATE.SINCE.NAME.TOPICS  its note. STATE is "w" if it is waiting for jobs, "b" if it is busy, and "n" with the hash of a topic if it was
                         nudged for that topic. SINCE is when the state began, in microseconds of the boot clock. TOPICS are the hashes
                         of the topics that it listens to, or "any".
j.NAME                   the ids of the jobs whose end it is waiting for.

A sender nudges a waiting listener by renaming its note. Only one sender succeeds, so a listener gets one nudge however many senders there
are. Topics are hashed with the namespace, since several namespaces may share a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Collection
from functools import cached_property, lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Final, NamedTuple

from taskflow.broker.sqlite.ownership import PRIVATE, open_folder_beside
from taskflow.broker.sqlite.store_file import WAKE, StoreFile
from taskflow.model.errors import BrokerRefused

WAITING: Final = "w"
BUSY: Final = "b"
NUDGED: Final = "n"

_MOST_ADDRESS_BYTES: Final = 100
"""The maximum length of a socket's path in bytes. Linux allows 107, other systems 103."""

_TOPIC_DIGITS: Final = 8
ANY_TOPIC: Final = "any"
_MOST_TOPICS: Final = 25
"""The maximum number of topics whose hashes fit into a file name. A listener
with more topics receives all wake-ups, and ignores those for other topics."""

_MOST_AWAITED_BYTES: Final = 1 << 22

_LONGEST_TICK: Final = 20_000_000
"""The longest time in nanoseconds between two ticks of the clock that sets the times of files."""


_LISTENER: Final = r"\d+-[0-9a-f]{12}"
_NOTE: Final = re.compile(rf"(w|b|n[0-9a-f]{{8}})\.([0-9a-f]{{16}})\.({_LISTENER})\.((?:[0-9a-f]{{8}})*|any)")
_AWAITING: Final = re.compile(rf"j\.({_LISTENER})")


@lru_cache(4096)
def topic_hash(namespace: str, topic: str) -> str:
    return blake2b(f"{namespace} {topic}".encode(), digest_size=_TOPIC_DIGITS // 2).hexdigest()


class ListenerNote(NamedTuple):
    """The note that shows senders the state of a listener. `state` is `WAITING`, `BUSY`, or `NUDGED` followed by a topic's hash."""

    state: str
    since: str
    listener: str
    topics: str

    @classmethod
    def new(cls, state: str, now: int, listener: str, namespace: str, topics: Collection[str]) -> ListenerNote:
        hashes = ANY_TOPIC if len(topics) > _MOST_TOPICS else "".join(topic_hash(namespace, topic) for topic in topics)
        return cls(state, f"{now:016x}", listener, hashes)

    @classmethod
    def parse(cls, file: str) -> ListenerNote | None:
        """Return the note that a file name denotes, or None if it denotes none: any user may have put the file there."""
        return cls(*found.groups()) if (found := _NOTE.fullmatch(file)) is not None else None

    def turned(self, state: str, now: int) -> ListenerNote:
        return ListenerNote(state, f"{now:016x}", self.listener, self.topics)

    def hears(self, hashed: str) -> bool:
        return self.topics == ANY_TOPIC or hashed in _split(self.topics)

    @property
    def nudged_for(self) -> str | None:
        """The hash of the topic that the listener was nudged for, or None."""
        return self.state[1:] or None

    @property
    def since_number(self) -> int:
        return int(self.since, 16)

    @property
    def file(self) -> str:
        return ".".join(self)


@lru_cache(1024)
def _split(topics: str) -> frozenset[str]:
    return frozenset(topics[start : start + _TOPIC_DIGITS] for start in range(0, len(topics), _TOPIC_DIGITS))


class Listeners:
    """Interprets the names of the folder's files: as sockets, notes by listener
    (oldest first), and the files of listeners that await the end of jobs."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self.awaiting = [found[1] for found in map(_AWAITING.fullmatch, files) if found is not None]

    @cached_property
    def sockets(self) -> set[str]:
        return {file for file in self._files if "." not in file}

    @cached_property
    def notes(self) -> dict[str, ListenerNote]:
        notes = [note for note in map(ListenerNote.parse, self._files) if note is not None]
        return {note.listener: note for note in sorted(notes, key=attrgetter("since"))}

    @cached_property
    def are_waiting(self) -> bool:
        """True if any listener is waiting for jobs."""
        return any(note.state == WAITING for note in self.notes.values())

    def files_of(self, listener: str) -> list[str]:
        """Return the files of a listener other than its socket."""
        files = [awaited_file(listener)] if listener in self.awaiting else []
        return [*files, self.notes[listener].file] if listener in self.notes else files

    @property
    def names(self) -> set[str]:
        return self.sockets.union(self.notes, self.awaiting)

    @cached_property
    def without_note(self) -> set[str]:
        """The sockets of listeners that have no other file."""
        return self.sockets.difference(self.notes, self.awaiting)


def awaited_file(listener: str) -> str:
    return f"j.{listener}"


class Folder:
    """The folder of a store's listeners. It is opened only if its owner can be trusted, and then used through its
    descriptor. Before files are listed or created, it is opened again if it has been replaced."""

    def __init__(self, store: StoreFile) -> None:
        self._store = store
        self._path = store.beside(WAKE)
        self._descriptor: int | None = None
        self._changed_at = 0
        self._listed: tuple[int, Listeners] | None = None

    def bind(self, name: str) -> socket.socket:
        """Bind a new socket in the folder, which is created if it is missing. Raises OSError if that is impossible."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path, 0o700)
        self._store.share(self._opened())
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.bind(self.address(name))
        except OSError:
            bound.close()
            raise
        self._store.share(self.address(name))
        return bound

    def listeners(self) -> Listeners | None:
        """Return the listeners in the folder, or None if the folder is missing or cannot be read."""
        try:
            folder = self._opened()
            if self._listed is not None and self._listed[0] == self._changed_at:
                return self._listed[1]
            listed_at, listeners = time.time_ns(), Listeners(os.listdir(folder))
        except OSError:
            return None
        # The system's clock for files moves on in ticks: another change within this one would leave the same time.
        self._listed = (self._changed_at, listeners) if listed_at - self._changed_at > _LONGEST_TICK else None
        return listeners

    def address(self, name: str) -> str:
        """Return the socket's path. If that is too long for a socket, return a path through
        the folder's descriptor. Raises OSError if that is needed and the folder is missing."""
        path = os.path.join(self._path, name)
        if len(os.fsencode(path)) <= _MOST_ADDRESS_BYTES:
            return path
        return f"/proc/self/fd/{self._opened()}/{name}"

    def create(self, file: str) -> int:
        """Create a file and return its descriptor. Raises OSError if that fails."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
        descriptor = os.open(file, flags, PRIVATE, dir_fd=self._opened())
        self._store.share(descriptor)
        return descriptor

    def has(self, file: str) -> bool:
        try:
            os.stat(file, dir_fd=self._descriptor or self._opened(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def rename(self, before: str, after: str) -> None:
        """Rename a file. Raises FileNotFoundError if another process has renamed or removed it."""
        folder = self._descriptor or self._opened()
        os.rename(before, after, src_dir_fd=folder, dst_dir_fd=folder)

    def read(self, file: str) -> bytes:
        """Return the contents of a file, or no bytes if it cannot be read."""
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._descriptor or self._opened())
        except OSError:
            return b""
        try:
            return os.read(descriptor, _MOST_AWAITED_BYTES)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Remove the file if it is a socket; leave anything else alone."""
        self._remove(name, stat.S_ISSOCK)

    def remove_file(self, file: str) -> None:
        """Remove the file if it is a regular file; leave anything else alone."""
        self._remove(file, stat.S_ISREG)

    def _remove(self, name: str, is_expected: Callable[[int], bool]) -> None:
        with contextlib.suppress(OSError):
            folder = self._opened()
            if is_expected(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = self._listed = None

    def _opened(self) -> int:
        """Return the folder's descriptor, and reopen the folder if it has been
        replaced. Raises OSError if it is missing, a link, or another user's."""
        if self._descriptor is not None:
            found = os.lstat(self._path)
            if os.path.samestat(found, os.fstat(self._descriptor)):
                self._changed_at = found.st_mtime_ns
                return self._descriptor
            self.close()
        try:
            self._descriptor = open_folder_beside(self._store, WAKE)
        except BrokerRefused as refused:
            raise PermissionError(str(refused)) from refused
        self._changed_at = os.fstat(self._descriptor).st_mtime_ns
        return self._descriptor
