"""Examines a file for `taskflow doctor`, and corrects its counts and entries."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine.examination import EXAMINE_TIMEOUT, WITH_ENTRIES, compare_entries, finding
from taskflow.broker.engine.records import TABLES
from taskflow.broker.sqlite.queries import ACTUAL_COUNTS
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import PRIVATE

T = TypeVar("T")

_LITTLE_ROOM: Final = 100 << 20

_MISCOUNTED: Final = f"""\
WITH actual AS ({ACTUAL_COUNTS})
SELECT (SELECT count(*) FROM "~counted" AS c LEFT JOIN actual AS a USING (what, queue) WHERE what LIKE '=%' AND c.n <> coalesce(a.n, 0))
  + (SELECT count(*) FROM actual AS a LEFT JOIN "~counted" AS c USING (what, queue) WHERE c.n IS NULL)"""


def examine(store: SqliteStore) -> list[Finding]:
    connection = store.connection
    [(_, _, path)] = [row for row in connection.execute("PRAGMA database_list") if row[1] == "main"]
    [(pages,)], [(page_size,)] = connection.execute("PRAGMA page_count"), connection.execute("PRAGMA page_size")
    free = shutil.disk_usage(os.path.dirname(path)).free
    size = pages * page_size
    found = _pages(store)
    return [
        Finding("file", "ok", f"{path}: {size:,} bytes, SQLite {sqlite3.sqlite_version}"),
        Finding("persistence", "ok", "enqueues and outcomes are on disk before they are acknowledged"),
        found,
        Finding("indexes", "note", "not compared with the records of a damaged file") if found.level == "problem" else _indexes(store),
        _permissions(path),
        Finding("room", "ok" if free > max(size, _LITTLE_ROOM) else "problem", f"{free:,} bytes free on its disk"),
    ]


def _limited(store: SqliteStore, ask: Callable[[], T]) -> T | None:
    """Return `ask()`, or None if it takes more than `EXAMINE_TIMEOUT` seconds. The limit is needed because checkpoints wait meanwhile."""
    until = time.monotonic() + EXAMINE_TIMEOUT
    store.connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        return ask()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    finally:
        store.connection.set_progress_handler(None, 0)


def _pages(store: SqliteStore) -> Finding:
    """Check the structure of the file's pages, within `EXAMINE_TIMEOUT` seconds."""
    try:
        rows = _limited(store, lambda: store.connection.execute("PRAGMA main.quick_check(1)").fetchall())
    except sqlite3.DatabaseError as error:
        rows = [(str(error),)]
    if rows is None:
        return Finding(
            "pages", "note", f"no damage found within {EXAMINE_TIMEOUT:g} s; `PRAGMA quick_check` in the sqlite3 shell checks everything"
        )
    damage = [str(text) for (text,) in rows if text != "ok"]
    if damage:
        return Finding("pages", "problem", f"the file is damaged: {' '.join(damage)[:200]}; restore a backup, or `.recover` it")
    return Finding("pages", "ok", "quick_check found no damage")


def _indexes(store: SqliteStore) -> Finding:
    """Compare counts and entries with the records. SQLite maintains the other indexes itself."""
    return finding(_limited(store, lambda: _compare(store, repairs=False)))


def rebuild(store: SqliteStore) -> Rebuilt:
    """Correct counts and entries, in the transaction of this operation."""
    store.flush()
    return _compare(store, repairs=True)


def _compare(store: SqliteStore, *, repairs: bool) -> Rebuilt:
    ask = store.connection.execute
    [(miscounted,)] = ask(store.sql[_MISCOUNTED])
    if repairs and miscounted:
        ask(store.sql["""DELETE FROM "~counted" WHERE what LIKE '=%'"""])
        ask(store.sql[f'INSERT INTO "~counted" (what, queue, n) {ACTUAL_COUNTS}'])
    corrected, unreadable = Counter[str](counts=miscounted), 0
    for index, condition in WITH_ENTRIES.items():
        records = ask(store.sql[f'SELECT id, sent, state FROM "~{TABLES[index.kind]}" WHERE {condition}'])
        found = compare_entries(index.kind, records, set(ask(store.sql[f'SELECT value, id FROM "~{index.name}"'])))
        corrected[index.name], unreadable = len(found.missing) + len(found.wrong), unreadable + found.unreadable
        if repairs:
            store.connection.executemany(store.sql[f'DELETE FROM "~{index.name}" WHERE value = ? AND id = ?'], found.wrong)
            store.connection.executemany(store.sql[f'INSERT INTO "~{index.name}" (value, id) VALUES (?, ?)'], found.missing)
    records = sum(ask(store.sql[f'SELECT count(*) FROM "~{table}"']).fetchone()[0] for table in TABLES.values())
    return Rebuilt(corrected=+corrected, records=records, unreadable=unreadable)


def _permissions(path: str) -> Finding:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if not mode & ~PRIVATE:
        return Finding("permissions", "ok", "only its owner can read and write the file")
    can = "read and write" if mode & 0o022 else "read"
    remedy = f"unless they share it, run `chmod 600 {shlex.quote(path)}`"
    return Finding("permissions", "note", f"other users can {can} the file (mode {mode:04o}): {remedy}")
