"""Opens a store's file, and creates or migrates its tables. Every failure is reported as one clear error."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from typing import Final, TypeVar

from taskflow.broker.migrations import Upgrade
from taskflow.broker.sqlite.errors import broker_error, whoami
from taskflow.broker.sqlite.statements import Statements, pragma
from taskflow.broker.sqlite.store_file import StoreFile, check_opened, check_store, make_private
from taskflow.broker.sqlite.tables import execute_with_lock, make, pending, tables_in, tables_of, tables_of_namespaces, upgrade_from
from taskflow.model.errors import BrokerRefused, BrokerUnavailable

T = TypeVar("T")

_STATEMENT_CACHE: Final = 512
INCREMENTAL: Final = 2
"""The value of the `auto_vacuum` pragma for incremental vacuuming (https://sqlite.org/pragma.html#pragma_auto_vacuum)."""
_CACHE_KIB: Final = 16_384


def connect(store: StoreFile, sql: Statements) -> tuple[sqlite3.Connection, Upgrade]:
    """Open a connection to the namespace's tables, creating or migrating them if necessary. Return the connection and what was done.

    If that fails, raises BrokerRefused or BrokerUnavailable, naming the file and the remedy. The connection belongs to the calling thread.
    """
    _check_path(store)
    if not os.path.exists(store.path):
        upgrade_from(0, store).refuse_unless(store.opening.migrates)
    try:
        make_private(store.path)
    except OSError as error:
        raise BrokerUnavailable(f"{store.path} cannot be created: {error}") from error
    return _connect(store, lambda connection: _prepare(connection, store, sql))


def look(store: StoreFile, sql: Statements) -> Upgrade:
    """Return the pending migrations. Changes nothing: a missing file stays missing."""
    _check_path(store)
    if not os.path.exists(store.path):
        return upgrade_from(0, store)
    connection, found = _connect(store, lambda connection: _look(connection, store, sql))
    connection.close()
    return found


def _connect(store: StoreFile, begin: Callable[[sqlite3.Connection], T]) -> tuple[sqlite3.Connection, T]:
    try:
        connection = sqlite3.connect(store.path, timeout=store.timeout, isolation_level=None, cached_statements=_STATEMENT_CACHE)
    except sqlite3.Error as error:
        raise broker_error(error, store) from error
    connection.text_factory = decoded
    try:
        check_opened(store)
        connection.execute("PRAGMA trusted_schema=OFF")  # no trigger or view in the file may call functions with side effects
        return connection, begin(connection)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise broker_error(error, store) from error
        raise


def decoded(raw: bytes) -> str | bytes:
    """Decode text, but return it as bytes if it is not UTF-8. By default, sqlite3 raises an error, and the whole fetch fails."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _prepare(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    found = _look(connection, store, sql)  # before anything is written, so that a refused file stays unchanged
    found.refuse_unless(store.opening.migrates)
    if not store.shared:
        connection.execute(pragma("auto_vacuum", INCREMENTAL))  # changes nothing in a file that has tables
    _use_wal(connection, store)
    # taskflow makes its own checkpoints: see checkpoint.py.
    connection.execute(pragma("wal_autocheckpoint", 0))
    connection.execute(pragma("cache_size", -_CACHE_KIB))
    connection.execute("PRAGMA temp_store=MEMORY")
    return make(connection, store, sql) if found.migrations else found


def _look(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    _check_tables(connection, store, sql)
    _check_encoding(connection, store)
    return pending(connection, store, sql)


# --- the path ---------------------------------------------------------------------------------------------------


def _check_path(store: StoreFile) -> None:
    """Raise an error that names the cause if no store can be opened here. SQLite would report only "unable to open database file"."""
    check_store(store)
    path, folder = store.path, os.path.dirname(store.path)
    if not os.path.exists(folder):
        raise BrokerRefused(f"{path}: its folder {folder} does not exist: create it, or correct the path")
    if not os.path.isdir(folder):
        raise BrokerRefused(f"{path}: {folder} is not a folder: correct the path")
    if os.path.isdir(path):
        raise BrokerRefused(f"{path} is a folder: name a file, for example {os.path.join(path, 'taskflow.db')}")
    if os.path.exists(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BrokerRefused(f"{path} is a pipe, a socket or a device, not a file: name a file, which is created if it is missing")
        _check_access(path, os.R_OK, f"{path} cannot be read")
        _check_access(path, os.W_OK, f"{path} is read-only")
    _check_access(folder, os.W_OK | os.X_OK, f"{path}: its folder {folder}, where SQLite keeps its other files, is read-only")


def _check_access(path: str, mode: int, problem: str) -> None:
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        raise BrokerRefused(f"{problem} for {whoami()}: give it read and write access, or use another path")


# --- the tables ---------------------------------------------------------------------------------------------------


def _check_tables(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> None:
    there = tables_in(connection)
    if tables_of(store.namespace) & there or store.shared:
        return
    strangers = sorted(there - tables_of_namespaces(there))
    if strangers:
        raise BrokerRefused(
            f"{store.path} contains tables of another program ({', '.join(strangers[:3])}{', ...' if strangers[3:] else ''}): "
            "use another file, or add ?shared=1 to share this one"
        )


def _check_encoding(connection: sqlite3.Connection, store: StoreFile) -> None:
    """Raise BrokerRefused if the file uses UTF-16: `group_concat`, which joins payloads, treats bytes as text and would change them."""
    [(encoding,)] = connection.execute("PRAGMA encoding")
    if encoding != "UTF-8":
        raise BrokerRefused(
            f"{store.path} has the encoding {encoding}, but jobs need UTF-8: a file that has tables cannot be converted, so use another one"
        )


def _use_wal(connection: sqlite3.Connection, store: StoreFile) -> None:
    """Switch the file to WAL mode. SQLite doesn't wait for a lock before this statement, so `execute_with_lock` retries it."""
    [(mode,)] = execute_with_lock(connection, store, "PRAGMA journal_mode=WAL")
    if mode != "wal":
        raise BrokerRefused(f"{store.path}: its file system does not support SQLite's write-ahead log (a network drive?): use a local disk")
    connection.execute("PRAGMA schema_version").fetchone()  # the first read creates the log's index
