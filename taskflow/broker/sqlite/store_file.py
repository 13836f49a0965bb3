"""Describes a store's file, and decides which file may be a store, and which files beside it may be used.

Another user with write access to the folder could have created such files, for example as links to other people's files."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable

LOG: Final = "-wal"
INDEX: Final = "-shm"
"""Suffixes of the files that SQLite keeps beside the store: the write-ahead log, and the log's index, which contains the write lock."""

JOURNAL: Final = "-journal"
"""The suffix of a rollback journal, which SQLite uses for a file without a
write-ahead log. SQLite writes any journal that it finds back into the file."""

SIDE: Final = "-taskflow"
"""The suffix of taskflow's own file beside the store, which is locked during a checkpoint: see checkpoint.py."""

WAKE: Final = "-wake"
"""The suffix of the folder in which listeners can be found: see wake_folder.py."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Which files the broker may open or create.

    `migrates` True: the first operation creates or migrates the tables. False: it is refused if that is needed
    `owner`    the uid of another user who may own the file; this user and root always may
    """

    migrates: bool = True
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFile:
    """The file of a store, and how it is used. `path` is absolute and not a link; `given` is the user's own path, made absolute.
    `timeout` is the maximum time in seconds to wait for another process's lock, `capacity` the number of live jobs beyond which `enqueue`
    raises StoreFull (None for no limit).
    """

    path: str
    namespace: str
    shared: bool
    timeout: float
    capacity: int | None
    opening: Opening = Opening()
    given: str = ""

    def uri(self, mode: Literal["ro", "rw"]) -> str:
        """Return the URI with which SQLite opens the file, for reading only or also for writing, without creating it."""
        return f"file:{quote(self.path)}?mode={mode}"

    def beside(self, ending: str) -> str:
        return self.path + ending

    def size(self, ending: str) -> int:
        """Return the size in bytes of a file beside the store, or 0 if it is missing."""
        try:
            return os.stat(self.beside(ending)).st_size
        except OSError:
            return 0

    def share(self, path: str | int) -> None:
        """Give one of taskflow's own files or folders the permissions of the store file, as SQLite does with its own files. If the store
        does not exist yet, only the owner gets access. A folder keeps its sticky bit."""
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


PRIVATE: Final = 0o600
"""The mode of a new file: only its owner may use it. To share a store, change the mode of its file; the files beside it follow."""

_LINKED: Final = (errno.ELOOP, errno.EMLINK)
"""The error codes for opening a link with O_NOFOLLOW, on Linux and on BSD."""

_MAX_LINKS: Final = 40

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def make_private(path: str) -> None:
    """Create the store's file, if it is missing, for its owner only. SQLite would make it readable by all users."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
    except FileExistsError:
        return


# --- the store itself -----------------------------------------------------------------------------------------------


def check_store(store: StoreFile) -> None:
    """Check the store's file, and the links on the way to it. Raises BrokerRefused if another user may have put one of them there.

    A link must belong to this user, root or the owner that the URL names, or lie in a folder that only its owner can write to. The file
    itself must belong to one of these users, and have no second name (a hard link).
    """
    for link in _links_to(store.given):
        owner = os.lstat(link).st_uid
        if not _is_named(store, owner) and os.stat(os.path.dirname(link)).st_mode & _WRITABLE_BY_OTHERS:
            raise BrokerRefused(
                f"{link} is a link that belongs to uid {owner}, in a folder that other users can write to: name the file that it leads to, "
                f"or add ?owner={owner} if you trust this user"
            )
    try:
        found = os.lstat(store.path)
    except OSError:  # the file is missing and will be created, or SQLite will fail to open it
        return
    if stat.S_ISLNK(found.st_mode):
        raise _refusal(store.path, "has become a link")
    if not _is_named(store, found.st_uid):
        raise BrokerRefused(
            f"{store.path} belongs to uid {found.st_uid}, who may have put jobs into it: run as this user, or add ?owner={found.st_uid} "
            "if you trust them"
        )
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        raise BrokerRefused(f"{store.path} has a second name (a hard link), so it could be damaged: remove that name, or use a copy")


def check_opened(store: StoreFile) -> None:
    """Check the store again after SQLite opened it by its path. Raises BrokerUnavailable if SQLite opened another file.

    Only SQLite may open the file: if this module closed a descriptor of it, the system would release SQLite's locks.
    """
    check_store(store)
    with suppress(FileNotFoundError):  # this system has no /dev/fd
        if store.identity() not in set(_open_files()):
            raise BrokerUnavailable(f"{store.path} was replaced while it was being opened: the next call opens it again")


def _open_files() -> Iterator[tuple[int, int]]:
    """Yield the device and inode of every file that this process has open."""
    for descriptor in os.listdir("/dev/fd"):
        with suppress(OSError):
            found = os.fstat(int(descriptor))
            yield found.st_dev, found.st_ino


def _links_to(path: str) -> Iterator[str]:
    """Yield the symbolic links that opening this absolute path follows, as many as the system would follow."""
    folder, ahead, number = "/", path.split("/")[::-1], 0
    while ahead and number < _MAX_LINKS:
        at = os.path.normpath(os.path.join(folder, ahead.pop()))
        if not os.path.islink(at):
            folder = at
            continue
        yield at
        number += 1
        target = os.readlink(at)
        ahead += target.split("/")[::-1]
        folder = "/" if target.startswith("/") else folder


def _is_named(store: StoreFile, owner: int) -> bool:
    """Return True for this user, root, and the owner that the URL names."""
    return owner in (os.geteuid(), 0, store.opening.owner)


# --- the files beside it ----------------------------------------------------------------------------------------------


def open_beside(store: StoreFile, ending: str, flags: int) -> int:
    """Open a regular file beside the store, or a folder if `flags` contains O_DIRECTORY, and return its descriptor. Raises OSError on
    failure, and BrokerRefused for a link, a special file or an untrusted user's file."""
    path = store.beside(ending)
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE)
    except OSError as error:
        if error.errno in _LINKED:
            raise _refusal(path, "is a link") from error
        raise
    try:
        _check(store, path, os.fstat(descriptor), is_folder=bool(flags & os.O_DIRECTORY))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_beside(store: StoreFile) -> None:
    """Check every file that a broker or SQLite may have created beside the store. Raises BrokerRefused if one must not be used."""
    for ending in (LOG, INDEX, JOURNAL, SIDE, WAKE):
        path = store.beside(ending)
        try:
            found = os.lstat(path)
        except OSError:
            continue
        _check(store, path, found, is_folder=ending == WAKE)


def _check(store: StoreFile, path: str, found: os.stat_result, *, is_folder: bool) -> None:
    mode = found.st_mode
    if stat.S_ISLNK(mode):
        raise _refusal(path, "is a link")
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        raise _refusal(path, "is not a folder" if is_folder else "is not a regular file")
    if not is_folder and found.st_nlink > 1:
        raise _refusal(path, "has a second name (a hard link)")
    if not _is_trusted(store, found.st_uid):
        raise _refusal(path, f"belongs to uid {found.st_uid}")


def _is_trusted(store: StoreFile, owner: int) -> bool:
    """Return True for the users that `_is_named` accepts, the store's owner, and all users if the store's mode lets others write to it."""
    if _is_named(store, owner):
        return True
    try:
        found = os.lstat(store.path)
    except OSError:
        return False
    return owner == found.st_uid or bool(found.st_mode & _WRITABLE_BY_OTHERS)


def _refusal(path: str, what: str) -> BrokerError:
    return BrokerRefused(
        f"{path} {what}: another user may have put it there; remove it, and keep the store in a folder that only you can write to"
    )
