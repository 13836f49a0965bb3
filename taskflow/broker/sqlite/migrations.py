"""Migrates a namespace's tables with numbered scripts, in one transaction that holds the write lock."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from taskflow.broker.migrations import Migrations, Upgrade
from taskflow.broker.sqlite.self_deadlock import execute_with_lock
from taskflow.broker.sqlite.statements import Statements, table_prefix
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.errors import BrokerError, BrokerRefused

MIGRATIONS: Final = Migrations(Path(__file__).parent / "schema")
"""The migrations of the tables. Each changes tables or indexes, not only
rows, so that SQLite recompiles all statements and other processes notice."""

_TABLES: Final = frozenset(
    {"meta", "queues", "job_names", "totals", "sessions", "jobs", "tags", "oversized", "ends", "schedules", "declarations", "acts"}
)


def pending(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    """Return the pending migrations. Raises BrokerRefused if the tables are newer than the installed taskflow, or do not belong to it."""
    is_there = tables_of(store.namespace) & {name for (name,) in connection.execute(sql["tables"])}
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
    guard = [sql["guard_version"].replace("?", str(found.version))] if found.version else []
    shrinking = "" if shared else "PRAGMA auto_vacuum=INCREMENTAL;\n"  # a file that has tables keeps its setting
    return "\n\n".join([head, f".bail on\n{shrinking}BEGIN IMMEDIATE;", *guard, *_changes(found, sql), "COMMIT;\n"])


def tables_of(namespace: str) -> set[str]:
    return {table_prefix(namespace) + name for name in _TABLES}


def tables_of_namespaces(there: set[str]) -> set[str]:
    """Return the tables that belong to a complete taskflow namespace."""
    prefixes = {name.removesuffix("job_names") for name in there if name.endswith("_job_names")}
    whole = [{prefix + name for name in _TABLES} for prefix in prefixes]
    return set().union(*(tables for tables in whole if tables <= there))


def _changes(found: Upgrade, sql: Statements) -> Iterator[str]:
    for migration in found.migrations:
        begun = ""
        for part in sql.placed(MIGRATIONS.text(migration.version)).split(";")[:-1]:
            begun += part + ";"
            if sqlite3.complete_statement(begun):  # a trigger's body contains semicolons too
                yield begun.strip()
                begun = ""
    if found.migrations:
        yield sql["set_version"].replace("?", str(found.target))


def version_of(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> int:
    """Return the version of the tables. Raises BrokerRefused if it is newer
    than the installed taskflow, or if the tables or a trigger on them belong to another program."""
    try:
        row = connection.execute(sql["version"]).fetchone()
    except sqlite3.OperationalError as error:
        raise _not_ours(store) from error
    if row is None:
        raise _not_ours(store)
    version, has_triggers = row
    if not isinstance(version, int):
        raise BrokerRefused(
            f"{store.path}: the tables of namespace {store.namespace!r} have version {version!r}, which is not a number: "
            "use another file or a backup"
        )
    if version > MIGRATIONS.newest:
        raise BrokerRefused(
            f"{store.path}: namespace {store.namespace!r} was made by a newer taskflow "
            f"(table version {version}, this one knows {MIGRATIONS.newest}): upgrade taskflow, or use another file"
        )
    if has_triggers:
        _check_for_intruders(connection, store, sql)
    return version


def _check_for_intruders(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> None:
    """Raise BrokerRefused if the tables have a trigger that no migration makes, or a view has the name of one. Both run others' SQL."""
    for kind, name, text in connection.execute(sql["intruders"], (json.dumps(sorted(tables_of(store.namespace))),)):
        if text + ";" not in _changes(upgrade_from(0, store), sql):
            raise BrokerRefused(
                f"{store.path}: the tables of namespace {store.namespace!r} have the {kind} {name!r}, which is not part of taskflow: "
                "drop it if you trust the rest of the file, or use another file"
            )


def _not_ours(store: StoreFile) -> BrokerError:
    return BrokerRefused(
        f"{store.path}: the tables of namespace {store.namespace!r} belong to another program: use another namespace or file"
    )
