"""Migrates a namespace's tables with numbered scripts, in one transaction that holds the write lock, and refuses tables that this version
cannot use."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from taskflow.broker.migrations import Migrations, Upgrade
from taskflow.broker.sqlite import tables
from taskflow.broker.sqlite.errors import is_busy
from taskflow.broker.sqlite.statements import Statements, pragma, table_prefix
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.errors import BrokerError, BrokerRefused

MIGRATIONS: Final = Migrations(Path(__file__).parent / "schema")

_VERSION: Final = """\
SELECT (SELECT value FROM "~meta" WHERE name = 'version'), (SELECT value FROM "~meta" WHERE name = 'digest'),
  EXISTS (SELECT 1 FROM main.sqlite_master WHERE type IN ('trigger', 'view'))"""

_COMMENT: Final = re.compile(r"^\s*--.*$|\s+-- .*$", re.MULTILINE)

_SET_VERSION: Final = """\
INSERT INTO "~meta" (name, value) VALUES ('version', {}), ('digest', {}) ON CONFLICT (name) DO UPDATE SET value = excluded.value;"""

_GUARD_VERSION: Final = """UPDATE "~meta" SET value = NULL WHERE name = 'version' AND value IS NOT {};"""
"""Fails if the tables have another version: `value` must not be NULL."""

_INTRUDERS: Final = """\
SELECT type, name, sql FROM main.sqlite_master
WHERE type IN ('trigger', 'view') AND lower(tbl_name) IN (SELECT value FROM json_each(?))"""


def pending(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    """Return the pending migrations. Raises BrokerRefused if the tables are newer than the installed taskflow, or do not belong to it."""
    is_there = tables_of(store.namespace) & tables_in(connection)
    return upgrade_from(version_of(connection, store, sql) if is_there else 0, store)


def upgrade_from(version: int, store: StoreFile) -> Upgrade:
    return MIGRATIONS.after(version, f"namespace {store.namespace!r} of {store.path}")


def upgrade(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    """Apply the pending migrations, and return them."""
    execute_with_lock(connection, store, "BEGIN IMMEDIATE")
    try:
        found = pending(connection, store, sql)  # checked again, because another process may have been first
        for statement in _changes(found, sql):
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return found


def script(found: Upgrade, sql: Statements, *, shared: bool = False) -> str:
    """Return the migrations as a script for the `sqlite3` program. The script fails on tables of another version."""
    if not found.migrations:
        return f"-- {found.place} is up to date (version {found.version})\n"
    head = f"-- taskflow, {found.place}: from version {found.version} to {found.target}."
    guard = [sql.script(_GUARD_VERSION.format(found.version))] if found.version else []
    shrinking = "" if shared else "PRAGMA auto_vacuum=INCREMENTAL;\n"  # a file that has tables keeps its setting
    return "\n\n".join([head, f".bail on\n{shrinking}BEGIN IMMEDIATE;", *guard, *_changes(found, sql), "COMMIT;\n"])


def _changes(found: Upgrade, sql: Statements) -> Iterator[str]:
    for migration in found.migrations:
        begun = ""
        text = MIGRATIONS.text(migration.version).replace("@TABLES", tables.script())
        for part in sql.script(_COMMENT.sub("", text)).split(";")[:-1]:
            begun += part + ";"
            if sqlite3.complete_statement(begun):  # a trigger's body contains semicolons too
                yield begun.strip()
                begun = ""
    if found.migrations:
        yield sql.script(_SET_VERSION.format(found.target, tables.digest()))


def tables_in(connection: sqlite3.Connection) -> set[str]:
    """Return the names of the tables of the file, without SQLite's own."""
    statement = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    return {str(name) for (name,) in connection.execute(statement)}


def tables_of(namespace: str) -> set[str]:
    return {table_prefix(namespace) + name for name in tables.names()}


def tables_of_namespaces(there: set[str]) -> set[str]:
    """Return the tables that belong to a complete taskflow namespace."""
    prefixes = {name.removesuffix("counted") for name in there if name.endswith("_counted")}
    whole = [{prefix + name for name in tables.names()} for prefix in prefixes]
    return set().union(*(names for names in whole if names <= there))


def version_of(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> int:
    """Return the version of the tables. Raises BrokerRefused if they are not those of the installed taskflow, or if a trigger on them
    belongs to another program."""
    try:
        [(version, digest, has_triggers)] = connection.execute(sql[_VERSION]).fetchall()
    except sqlite3.OperationalError as error:
        raise _not_ours(store) from error
    if not isinstance(version, int):
        raise _not_ours(store)
    if version > MIGRATIONS.newest:
        raise BrokerRefused(
            f"{store.path}: namespace {store.namespace!r} was made by a newer taskflow "
            f"(table version {version}, this one knows {MIGRATIONS.newest}): upgrade taskflow, or use another file"
        )
    if version == MIGRATIONS.newest and digest != tables.digest():
        raise BrokerRefused(
            f"{store.path}: namespace {store.namespace!r} was made by a taskflow with other tables: use the same version, or another file"
        )
    if has_triggers:
        _check_for_intruders(connection, store, sql)
    return version


def _check_for_intruders(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> None:
    """Raise BrokerRefused if the tables have a trigger that no migration makes, or a view has the name of one. Both run others' SQL."""
    for kind, name, text in connection.execute(sql[_INTRUDERS], (json.dumps(sorted(tables_of(store.namespace))),)):
        if text + ";" not in _changes(upgrade_from(0, store), sql):
            raise BrokerRefused(
                f"{store.path}: the tables of namespace {store.namespace!r} have the {kind} {name!r}, which is not part of taskflow: "
                "drop it if you trust the rest of the file, or use another file"
            )


def _not_ours(store: StoreFile) -> BrokerError:
    return BrokerRefused(
        f"{store.path}: the tables of namespace {store.namespace!r} belong to another program: use another namespace or file"
    )


def execute_with_lock(connection: sqlite3.Connection, store: StoreFile, statement: str) -> list[Any]:
    """Execute a statement that prepares the store, and return its rows. It waits for the lock like a verb."""
    until = time.monotonic() + store.timeout
    connection.execute(pragma("busy_timeout", 0)).fetchall()
    try:
        while True:
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
    finally:
        connection.execute(pragma("busy_timeout", int(store.timeout * 1000))).fetchall()
