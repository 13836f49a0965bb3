"""Decides which files beside the store may be used. Another user with write access
to its folder could have created them, for example as links to other people's files."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from taskflow.broker.sqlite.store_file import INDEX, JOURNAL, LOG, SIDE, WAKE, StoreFile
from taskflow.model.errors import BrokerError, BrokerRefused

PRIVATE: Final = 0o600
"""The mode of a new file: only its owner may use it. To share a store, change the mode of its file; the files beside it follow."""

_LINKED: Final = (errno.ELOOP, errno.EMLINK)
"""The error codes for opening a link with O_NOFOLLOW, on Linux and on BSD."""


def make_private(path: str) -> None:
    """Create the store's file, if it is missing, for its owner only. SQLite would make it readable by all users."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
    except FileExistsError:
        return


def open_beside(store: StoreFile, ending: str, flags: int) -> int:
    """Open a regular file beside the store. Raises OSError on failure; BrokerRefused for a link, a special file or another user's file."""
    path = store.beside(ending)
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE)
    except OSError as error:
        if error.errno in _LINKED:
            raise _refusal(path, "is a link") from error
        raise
    return _checked(store, path, file, is_folder=False)


def open_folder_beside(store: StoreFile, ending: str) -> int:
    """Open a folder beside the store. Raises OSError if that fails or it is not a folder, and BrokerRefused if it is another user's."""
    path = store.beside(ending)
    return _checked(store, path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), is_folder=True)


def _checked(store: StoreFile, path: str, descriptor: int, *, is_folder: bool) -> int:
    """Return the descriptor if the file or folder may be used. Otherwise close it and raise BrokerRefused."""
    try:
        _check(store, path, os.fstat(descriptor), is_folder=is_folder)
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
    if not _is_trusted(store, found.st_uid):
        raise _refusal(path, f"belongs to uid {found.st_uid}")


def _is_trusted(store: StoreFile, owner: int) -> bool:
    """Return True for this user, root and the store's owner, and for every user if the store's mode lets others write to it."""
    if owner in (os.geteuid(), 0):
        return True
    try:
        found = os.stat(store.path)
    except OSError:
        return False
    return owner == found.st_uid or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _refusal(path: str, what: str) -> BrokerError:
    return BrokerRefused(
        f"{path} {what}: another user may have put it there; remove it, and keep the store in a folder that only you can write to"
    )
