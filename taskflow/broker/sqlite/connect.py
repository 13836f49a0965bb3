"""Opening the file: adopt it, make the tables, or refuse it with one clear error."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Mapping
from typing import Final

from taskflow.broker.sqlite.ownership import make_private
from taskflow.broker.sqlite.refusals import in_our_words, is_busy, whoami
from taskflow.broker.sqlite.statements import Statements, pragma, table_prefix
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable

VERSION: Final = 1
"""Of the tables, in the meta table: `user_version` may be the user's own, in a file shared with his tables."""

_STATEMENT_CACHE: Final = 256
_CACHE_KIB: Final = 16_384
_TABLES: Final = frozenset({"meta", "queues", "job_names", "totals", "sessions", "jobs", "oversized"})


def open_file(place: StoreFile, sql: Statements, steady: int) -> sqlite3.Connection:
    """A connection to the namespace's tables, made where they are not there. `steady` is the first pulse of new ones.

    Raises BrokerRefused or BrokerUnavailable, naming the file and what to do. The connection belongs to the calling thread.
    """
    _check_path(place)
    try:
        make_private(place.path)
    except OSError as error:
        raise BrokerUnavailable(f"{place.path} cannot be made: {error}") from error
    try:
        connection = sqlite3.connect(place.path, timeout=place.timeout, isolation_level=None, cached_statements=_STATEMENT_CACHE)
    except sqlite3.Error as error:
        raise in_our_words(error, place) from error
    connection.text_factory = _text
    try:
        _prepare(connection, place, sql, steady)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise in_our_words(error, place) from error
        raise
    return connection


def _text(raw: bytes) -> str | bytes:
    """Text that is no UTF-8 comes as bytes. sqlite3's own way is to fail, and with it all that is read together."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _prepare(connection: sqlite3.Connection, place: StoreFile, sql: Statements, steady: int) -> None:
    _check_tables(connection, place, sql)  # before anything is written: a file that is refused stays as it is
    _check_encoding(connection, place)
    _use_wal(connection, place)
    # Checkpoints are ours to make: see checkpoint.py.
    connection.execute(pragma("wal_autocheckpoint", 0))
    connection.execute(pragma("cache_size", -_CACHE_KIB))
    connection.execute("PRAGMA temp_store=MEMORY")
    if not _are_there(connection, place, sql):
        _make_tables(connection, place, sql, steady)
    _check_version(connection, place, sql)


# --- the path ---------------------------------------------------------------------------------------------------


def _check_path(place: StoreFile) -> None:
    """What SQLite would only call "unable to open database file"."""
    path, folder = place.path, os.path.dirname(place.path)
    if not os.path.exists(folder):
        raise BrokerRefused(f"{path}: its folder {folder} does not exist: create it, or correct the path")
    if not os.path.isdir(folder):
        raise BrokerRefused(f"{path}: {folder} is not a folder: correct the path")
    if os.path.isdir(path):
        raise BrokerRefused(f"{path} is a folder: name a file, for example {os.path.join(path, 'taskflow.db')}")
    if os.path.exists(path):
        _check_kind(path)
        _check_access(path, os.R_OK, f"{path} cannot be read")
        _check_access(path, os.W_OK, f"{path} is read-only")
    _check_access(folder, os.W_OK | os.X_OK, f"{path}: its folder {folder}, where SQLite keeps files beside it, is read-only")


def _check_kind(path: str) -> None:
    mode = os.stat(path).st_mode
    for kind, is_one in _NO_FILES.items():
        if is_one(mode):
            raise BrokerRefused(f"{path} is a {kind}, and no file: name a file, which is made when it is not there")


_NO_FILES: Final[Mapping[str, Callable[[int], bool]]] = {
    "pipe": stat.S_ISFIFO,
    "socket": stat.S_ISSOCK,
    "device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


def _check_access(path: str, mode: int, problem: str) -> None:
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        raise BrokerRefused(f"{problem} for {whoami()}: give it read and write access, or use another place")


# --- the tables ---------------------------------------------------------------------------------------------------


def _check_tables(connection: sqlite3.Connection, place: StoreFile, sql: Statements) -> None:
    there = {name for (name,) in connection.execute(sql["tables"])}
    if _own(place.namespace) & there or place.shared:
        return
    strangers = sorted(there - _tables_of_namespaces(there))
    if strangers:
        raise BrokerRefused(
            f"{place.path} holds tables of another program ({', '.join(strangers[:3])}{', ...' if strangers[3:] else ''}): "
            "use another file, or add ?shared=1 to keep jobs beside them"
        )


def _check_encoding(connection: sqlite3.Connection, place: StoreFile) -> None:
    """Payloads are put together by `group_concat`, which takes bytes for text: in UTF-16 it changes them."""
    [(encoding,)] = connection.execute("PRAGMA encoding")
    if encoding != "UTF-8":
        raise BrokerRefused(
            f"{place.path} keeps its text in {encoding}, and jobs need UTF-8: "
            "this cannot be changed in a file that has tables, so use another one"
        )


def _are_there(connection: sqlite3.Connection, place: StoreFile, sql: Statements) -> bool:
    return bool(_own(place.namespace) & {name for (name,) in connection.execute(sql["tables"])})


def _own(namespace: str) -> set[str]:
    return {table_prefix(namespace) + name for name in _TABLES}


def _tables_of_namespaces(there: set[str]) -> set[str]:
    """Those that belong to a namespace of ours, complete with all its tables."""
    prefixes = {name.removesuffix("job_names") for name in there if name.endswith("_job_names")}
    whole = [{prefix + name for name in _TABLES} for prefix in prefixes]
    return set().union(*(tables for tables in whole if tables <= there))


def _use_wal(connection: sqlite3.Connection, place: StoreFile) -> None:
    """The change of mode does not wait for other connections as everything else does."""
    deadline = time.monotonic() + place.timeout
    while True:
        try:
            [(mode,)] = connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise BrokerRefused(f"{place.path}: its file system cannot do SQLite's write-ahead log (a network drive?): use a local one")


def _make_tables(connection: sqlite3.Connection, place: StoreFile, sql: Statements, steady: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _are_there(connection, place, sql):  # another process may have been first
            for statement in sql["schema"].split(";"):
                connection.execute(statement)
            connection.executemany(sql["add_meta"], [("version", VERSION), ("pulse", steady), ("names", 0)])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_version(connection: sqlite3.Connection, place: StoreFile, sql: Statements) -> None:
    try:
        row = connection.execute(sql["version"]).fetchone()
    except sqlite3.OperationalError as error:
        raise _not_ours(place) from error
    if row is None:
        raise _not_ours(place)
    [version] = row
    if not isinstance(version, int):
        raise BrokerRefused(
            f"{place.path}: namespace {place.namespace!r} says of its tables that they are of version {version!r}, which is no number: "
            "it cannot be read by this version of taskflow, so use another file or a backup"
        )
    if version > VERSION:
        raise BrokerRefused(
            f"{place.path}: namespace {place.namespace!r} was made by a newer taskflow "
            f"(tables of version {version}, this one knows {VERSION}): upgrade taskflow here, or use another file"
        )


def _not_ours(place: StoreFile) -> BrokerError:
    return BrokerRefused(f"{place.path}: the tables of namespace {place.namespace!r} are not taskflow's: use another namespace or file")
