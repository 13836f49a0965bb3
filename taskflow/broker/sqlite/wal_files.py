"""Keeps SQLite from applying one file's log and index to another file that has taken its name.

After `mv backup.db queue.db`, SQLite would replay the former file's log onto the backup and ruin it. So every opening records in the
side file which file the log and the index belong to. Every later opening or closing reads that record under the side file's lock, and
removes a log and an index that belong to another file. A process that is still using the former file has that file, its log and its
index open, and can continue. When it closes its connection, SQLite does not delete the files that have these names now
(SQLITE_FCNTL_HAS_MOVED)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from taskflow.broker.sqlite.lock_owner import locked_by
from taskflow.broker.sqlite.ownership import open_beside
from taskflow.broker.sqlite.store_file import INDEX, LOG, SIDE, StoreFile
from taskflow.model.errors import BrokerUnavailable

_PAUSE: Final = 0.002

_RECORD: Final = struct.Struct(">6Q")
"""Device and inode of the file, its log, and its index: `RECORD_BYTES`."""

_NOTHING: Final = (0,) * 6
"""A record that matches no file. An outdated record might match new files to which the system has given the same inodes."""


@contextmanager
def own_wal_files(store: StoreFile) -> Iterator[None]:
    """Remove a log and an index that belong to another file, and keep other processes from opening
    or closing this one during the `with` block. Raises BrokerUnavailable if that fails."""
    side = _open_side(store)
    try:
        if side is not None:
            _lock(side, store)
            _remove_foreign_files(side, store)
        yield
    finally:
        if side is not None:
            fcntl.flock(side, fcntl.LOCK_UN)  # unlocked here, because a process forked in the meantime has the descriptor too
            os.close(side)


def record_wal_files(store: StoreFile) -> None:
    """Record which files belong together, after the store has been opened. A failure (a full disk, another user's side file) is ignored."""
    found = (store.identity(), store.identity(LOG), store.identity(INDEX))
    _write(store, [number for one in found if one is not None for number in one] if None not in found else _NOTHING)


def _write(store: StoreFile, record: Sequence[int]) -> None:
    with contextlib.suppress(OSError):
        side = open_beside(store, SIDE, os.O_RDWR)
        try:
            os.pwrite(side, _RECORD.pack(*record), 0)
        finally:
            os.close(side)


def _open_side(store: StoreFile) -> int | None:
    try:
        return open_beside(store, SIDE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):  # the file has not been opened yet, or everything was removed
        return None
    except OSError as error:
        raise BrokerUnavailable(f"{store.path}: {error}") from error


def _lock(side: int, store: StoreFile) -> None:
    deadline = time.monotonic() + store.timeout
    while True:
        try:
            fcntl.flock(side, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{store.beside(SIDE)} {locked_by(store, SIDE)}") from error
            time.sleep(_PAUSE)
        else:
            return


def _remove_foreign_files(side: int, store: StoreFile) -> None:
    """Remove the log and the index if they belong to another file: both or
    neither, because a process that created one of them also uses the other."""
    noted = os.pread(side, _RECORD.size, 0)
    if len(noted) < _RECORD.size:
        return
    numbers = _RECORD.unpack(noted)
    file, log, index = (numbers[at : at + 2] for at in (0, 2, 4))
    if store.identity() == file or store.identity(LOG) not in (None, log) or store.identity(INDEX) not in (None, index):
        return
    for ending in (LOG, INDEX):
        _remove(store, store.beside(ending))
    _write(store, _NOTHING)


def _remove(store: StoreFile, path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BrokerUnavailable(f"{store.path} was replaced, but {path} belongs to the former file: remove it ({error})") from error
