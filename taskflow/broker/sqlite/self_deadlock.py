"""Finds out whether the lock that a verb waits for is held by a transaction of this very process.

`delay()` without `connection=`, called inside the caller's own write transaction, waits for a commit that comes only after it has returned.
Short transactions of other threads and tasks look the same, so time decides.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Any, Final

from taskflow.broker.sqlite.errors import is_busy
from taskflow.broker.sqlite.lock_owner import holder_of
from taskflow.broker.sqlite.statements import pragma
from taskflow.broker.sqlite.store_file import INDEX, StoreFile
from taskflow.model.errors import BrokerRefused

HELD_FOR: Final = 0.5
"""The number of seconds for which a transaction may hold the lock before it counts as one that waits for the verb."""

writing: Final = set[object]()
"""The brokers' own connections in this process that are in a transaction."""


class SelfDeadlockDetector:
    """The state of one wait for the lock. Call `look` at each failed attempt, and `forget` after a successful one."""

    def __init__(self, store: StoreFile, connection: sqlite3.Connection) -> None:
        self._store = store
        self._connection = connection
        self._version: int | None = None
        self._since = 0.0
        self.is_suspected = False

    def look(self) -> None:
        """Set `is_suspected` if a single transaction of this process, but not of a broker, has held the lock for `HELD_FOR` seconds."""
        now, version = time.monotonic(), self._data_version()
        if version != self._version:
            self._version, self._since = version, now
        is_long = version is not None and now - self._since >= HELD_FOR
        self.is_suspected = is_long and _is_held_here(self._store) and self._data_version() == version

    def forget(self) -> None:
        self._version, self.is_suspected = None, False

    def refusal(self) -> BrokerRefused:
        return BrokerRefused(
            f"{self._store.path} is locked by an open transaction of this process, process {os.getpid()}, so nothing was sent: give its "
            "connection to the call (connection=...), or commit before you send"
        )

    def _data_version(self) -> int | None:
        """Return a number that changes with each commit of another connection; None if it cannot be read at the moment."""
        try:
            [(version,)] = self._connection.execute("PRAGMA data_version")
        except sqlite3.Error:
            return None
        return int(version)


def _is_held_here(store: StoreFile) -> bool:
    holder = holder_of(store, "", INDEX)
    return holder is not None and holder.pid == os.getpid() and not writing


def execute_with_lock(connection: sqlite3.Connection, store: StoreFile, sql: str) -> list[Any]:
    """Execute a statement that prepares the store, and return its rows. It waits for the lock like a verb. Raises BrokerRefused if a
    transaction of this process holds it, because that would wait for the store."""
    began = time.monotonic()
    connection.execute(pragma("busy_timeout", 0)).fetchall()
    while True:
        try:
            rows = connection.execute(sql).fetchall()
            break
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - began
            if not is_busy(error) or waited > store.timeout:
                raise
            if waited > HELD_FOR and _is_held_here(store):
                raise BrokerRefused(
                    f"{store.path} has no tables for jobs yet, and an open transaction of this process, process {os.getpid()}, keeps them "
                    "from being created: send a job before it, or run `taskflow migrate` once"
                ) from error
            time.sleep(0.01)
    connection.execute(pragma("busy_timeout", int(store.timeout * 1000))).fetchall()
    return rows
