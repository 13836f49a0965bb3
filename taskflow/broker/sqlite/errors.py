"""Translates sqlite3's errors into taskflow's, so that none of them leaves this package."""

from __future__ import annotations

import os
import sqlite3
from typing import Final

from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.errors import BrokerRefused, BrokerUnavailable, StoreFull, TaskflowError, TooLarge

MAX_VALUE_BYTES: Final = 1_000_000_000
"""The maximum size of a value or row in the usual build of SQLite, in bytes (https://sqlite.org/limits.html)."""


def is_full(error: BaseException) -> bool:
    """Return True if the error means that there is no room. This includes failed writes, and failures to grow or map the log's index."""
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, StoreFull)
    return _code(error) == sqlite3.SQLITE_FULL or getattr(error, "sqlite_errorcode", 0) in _NO_ROOM


_NO_ROOM = frozenset({sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMMAP})


def is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_about_the_file(error: BaseException) -> bool:
    """Return True for an error after which the connection cannot be trusted, so that the next call must open the file again."""
    return isinstance(error, sqlite3.Error) and _code(error) in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    )


def broker_error(error: sqlite3.Error, store: StoreFile, *, grows: bool = True) -> TaskflowError:
    """Return the taskflow error to raise in place of `error`. It names the file and says what to do. `grows` is True for an operation that
    adds jobs.

    A value that is too large gives TooLarge, which isn't a BrokerError: the store works, and another attempt would fail too.
    """
    path = store.path
    code = _code(error)
    if is_full(error) and grows:
        return StoreFull(f"{path}: no room for new jobs ({error}): let workers catch up, or make room on the disk")
    if is_full(error):
        return BrokerUnavailable(f"{path}: the disk is full ({error}), so nothing was changed: free some disk space")
    if is_busy(error):
        return BrokerUnavailable(
            f"{path} has been locked by another connection for over {store.timeout:g} s: find a program with an open transaction on it "
            "(a database browser, a backup, your own code), and end that transaction sooner"
        )
    if code == sqlite3.SQLITE_TOOBIG:
        return TooLarge(f"{path}: SQLite allows no value above {MAX_VALUE_BYTES:,} bytes ({error}): send a reference to the data")
    if code == sqlite3.SQLITE_NOTADB:
        return BrokerRefused(f"{path} is not an SQLite database: name another file, or move this one away")
    if code == sqlite3.SQLITE_CORRUPT:
        return BrokerRefused(
            f"{path} is damaged ({error}): stop everything that uses it, keep a copy, then restore a backup or try `sqlite3 FILE .recover`"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return BrokerRefused(f"{path} cannot be written by {whoami()} ({error}): give it write access to the file and its folder")
    if code == sqlite3.SQLITE_CANTOPEN:
        return BrokerUnavailable(f"{path} cannot be opened by {whoami()} ({error}): check that its folder exists and is writable")
    if code == sqlite3.SQLITE_IOERR:
        return BrokerUnavailable(f"{path}: the disk failed ({error}): check the disk, and whether the file was removed")
    if isinstance(error, sqlite3.IntegrityError):
        return BrokerRefused(f"{path}: a constraint of the store failed, which is a bug in taskflow: please report it ({error})")
    if code == sqlite3.SQLITE_ERROR:
        return BrokerRefused(f"{path}: its tables do not match this version of taskflow ({error})")
    return BrokerUnavailable(f"{path}: {error}")


def whoami() -> str:
    return f"uid {os.geteuid()}" if hasattr(os, "geteuid") else "this user"


def _code(error: sqlite3.Error) -> int:
    """Return the primary result code. The byte above it distinguishes variants (https://sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
