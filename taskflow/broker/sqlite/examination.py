"""Examines a file for `taskflow doctor`."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import stat
import time
from typing import Final

from taskflow.broker.admin import Finding
from taskflow.broker.sqlite.queries import ACTUAL_COUNTS
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import PRIVATE

_LITTLE_ROOM: Final = 100 << 20

EXAMINE_TIMEOUT: Final = 2.0
"""Seconds that the check of the file's pages, and that of the counts, may take. They are read transactions, for which a checkpoint
waits."""

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
    return [
        Finding("file", "ok", f"{path}: {size:,} bytes, SQLite {sqlite3.sqlite_version}"),
        Finding("persistence", "ok", "enqueues and outcomes are on disk before they are answered"),
        _pages(store),
        _counts(store),
        _permissions(path),
        Finding("room", "ok" if free > max(size, _LITTLE_ROOM) else "problem", f"{free:,} bytes free on its disk"),
    ]


def _ask(store: SqliteStore, statement: str) -> list[tuple[object, ...]] | None:
    """Return the rows of a statement; None if it takes longer than `EXAMINE_TIMEOUT`."""
    until = time.monotonic() + EXAMINE_TIMEOUT
    store.connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        return store.connection.execute(store.sql[statement]).fetchall()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    finally:
        store.connection.set_progress_handler(None, 0)


def _pages(store: SqliteStore) -> Finding:
    """Check the structure of the file's pages, and its indexes."""
    try:
        rows = _ask(store, "PRAGMA main.quick_check(1)")
    except sqlite3.DatabaseError as error:
        rows = [(str(error),)]
    if rows is None:
        return Finding(
            "pages", "note", f"no damage found within {EXAMINE_TIMEOUT:g} s; `PRAGMA quick_check` in the shell of SQLite checks all"
        )
    damage = [str(text) for (text,) in rows if text != "ok"]
    if damage:
        return Finding("pages", "problem", f"the file is damaged: {' '.join(damage)[:200]}; restore a backup, or `.recover` it")
    return Finding("pages", "ok", "quick_check found no damage")


def _counts(store: SqliteStore) -> Finding:
    """Compare the counts of jobs with the jobs: another program may have changed them."""
    rows = _ask(store, _MISCOUNTED)
    if rows is None:
        return Finding("counts", "note", f"no difference found within {EXAMINE_TIMEOUT:g} s")
    if rows[0][0]:
        return Finding("counts", "problem", f"{rows[0][0]} counts of jobs are wrong: another program has changed the tables")
    return Finding("counts", "ok", "the counts of jobs are right")


def _permissions(path: str) -> Finding:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if not mode & ~PRIVATE:
        return Finding("permissions", "ok", "only its owner can read and write the file")
    can = "read and write" if mode & 0o022 else "read"
    remedy = f"unless they share it, run `chmod 600 {shlex.quote(path)}`"
    return Finding("permissions", "note", f"other users can {can} the file (mode {mode:04o}): {remedy}")
