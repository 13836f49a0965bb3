"""Derives a file's tables from the declaration in `engine/records.py`, creates them, and refuses tables that this version cannot use."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from taskflow.broker.engine.records import HEADERS, INDEXES, TABLES, Field, Index, Kind, Owner, Type
from taskflow.broker.migrations import ADDITIONS, Migration, Upgrade
from taskflow.broker.sqlite.errors import is_busy
from taskflow.broker.sqlite.statements import Statements, pragma, table_prefix
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.errors import BrokerError, BrokerRefused

VERSION: Final = 1
"""The version of the tables that this taskflow creates and uses."""

BY_INDEX: Final = {index.name: index for index in INDEXES}
ENTRIES: Final = {kind: [index for index in INDEXES if index.entries is not None and index.kind == kind] for kind in HEADERS}
"""The indexes of each kind whose values a put lists. Each is stored as a table."""

PARTS: Final = ("sent", "state", "content")
FIELDS: Final = {kind: {field.name: field for field in fields} for kind, fields in HEADERS.items()}
WRITTEN: Final = {kind: {field.name for field in fields if field.owner is None} for kind, fields in HEADERS.items()}
"""The fields that a put writes to an existing record."""
RESTARTED: Final = {kind: {field.name for field in fields if field.owner is not Owner.STORE} for kind, fields in HEADERS.items()}
"""The fields that a put writes to a new record, or if it `restarts` the job."""

_TYPES: Final = {Type.SMALL: "INTEGER", Type.NUMBER: "INTEGER", Type.NAME: "TEXT", Type.BYTES: "BLOB"}

_POSSIBLE: Final = (
    "status BETWEEN 0 AND 7",
    "length(id) = 16",
    *("epoch >= 0", "due_at >= 0", "expires_at >= 0", "ended_at >= 0", "fade_at >= 0"),
    "status <> 3 OR (session IS NOT NULL AND length(session) = 16 AND claim IS NOT NULL AND length(claim) = 12)",
    "(status > 3) = (ended_at IS NOT NULL) AND (status > 3) = (fade_at IS NOT NULL)",
    "status <> 5 OR cause IS NOT NULL",
    "queue <> '' AND length(queue) <= 200 AND job <> '' AND length(job) <= 200",
)
"""The constraints on jobs. Other programs may write rows too, and a row that broke one of these rules would never be found, or would make
listings fail. On an update, SQLite checks only the rules that name a changed column."""

_META: Final = """\
CREATE TABLE "~meta" (
  name TEXT NOT NULL PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The numbers of jobs by queue and status ("=2"), and of events by queue.
CREATE TABLE "~counted" (
  what TEXT NOT NULL,
  queue TEXT NOT NULL,
  n INTEGER NOT NULL,
  PRIMARY KEY (what, queue)
) STRICT, WITHOUT ROWID;
CREATE INDEX "~counted_ready" ON "~counted" (queue) WHERE what = '=2' AND n > 0;
"""


def has_seq(kind: int) -> bool:
    """Return True if the store numbers the records of this kind by their rowid."""
    return "seq" in FIELDS[kind]


def ddl() -> str:
    """Return the statements that create all tables and indexes. "~x" stands for the namespace's table x."""
    return "\n".join([_META, *map(_table, TABLES), *filter(None, map(_index, INDEXES))])


@cache
def digest() -> int:
    """Return a hash of the statements that create the tables. It is cached, because each read compares it, and it takes 0.4 ms."""
    return int.from_bytes(hashlib.sha256(ddl().encode()).digest()[:7], "big")


def names() -> set[str]:
    """Return the names of all tables, without the namespace's prefix."""
    return {"meta", "counted", *TABLES.values(), *(index.name for index in INDEXES if index.entries is not None)}


def _table(kind: int) -> str:
    columns = ["id BLOB NOT NULL UNIQUE" if has_seq(kind) else "id BLOB NOT NULL PRIMARY KEY", "rev INTEGER NOT NULL"]
    if has_seq(kind):
        columns.insert(0, "seq INTEGER PRIMARY KEY AUTOINCREMENT")
    columns += [_column(field) for field in HEADERS[kind] if field.name != "seq"]
    columns += [f"{part} BLOB" for part in PARTS]
    falling = {field[1:] for index in INDEXES if index.kind == kind for field in index.at if field[0] == "-"}
    columns += [f"{falling_column(name)} INTEGER AS (-{name}) VIRTUAL" for name in sorted(falling)]
    if kind == Kind.JOB:
        columns += [f"CHECK ({rule})" for rule in _POSSIBLE]
    rows = "" if has_seq(kind) else ", WITHOUT ROWID"
    body = ",\n  ".join(columns)
    return f'CREATE TABLE "~{TABLES[kind]}" (\n  {body}\n) STRICT{rows};'


def _column(field: Field) -> str:
    default = f"'{field.default}'" if isinstance(field.default, str) else field.default
    return f"{field.name} {_TYPES[field.type]}" + ("" if field.default is None else f" NOT NULL DEFAULT {default}")


def _index(index: Index) -> str:
    if index.entries is not None:
        value = _TYPES[index.entries]
        entry = f"value {value} NOT NULL,\n  id BLOB NOT NULL,\n  PRIMARY KEY (value, id)"
        made = f'CREATE TABLE "~{index.name}" (\n  {entry}\n) STRICT, WITHOUT ROWID;'
        return f'{made}\nCREATE INDEX "~{index.name}_of" ON "~{index.name}" (id);'
    if not has_own_index(index):
        return ""
    # SQLite itself appends each row's `seq` or `id`, so rows that are equal in the other columns are ordered too
    columns = list(places(index))
    while len(columns) > 1 and columns[-1] in ("id", "seq"):
        columns.pop()
    where = f" WHERE {index.when}" if index.when else ""
    return f'CREATE INDEX "~{index_name(index)}" ON "~{TABLES[index.kind]}" ({", ".join(columns)}){where};'


def has_own_index(index: Index) -> bool:
    """Return True if SQLite needs a separate index: not if `index` is only counted, is a table of entries, or has its table's order."""
    return index.listed and index.entries is None and bool(index.when or index.at not in (("id",), ("seq",)))


def index_name(index: Index) -> str:
    return f"{TABLES[index.kind]}_{index.name}"


def falling_column(name: str) -> str:
    return f"falling_{name}"


def places(index: Index) -> tuple[str, ...]:
    return tuple([falling_column(field[1:]) if field[0] == "-" else field for field in index.at])


# --- the tables of a file -----------------------------------------------------------------------------------------

_VERSION: Final = """\
SELECT (SELECT value FROM "~meta" WHERE name = 'version'), (SELECT value FROM "~meta" WHERE name = 'digest'),
  EXISTS (SELECT 1 FROM main.sqlite_master WHERE type IN ('trigger', 'view'))"""

_INTRUDERS: Final = """\
SELECT type, name FROM main.sqlite_master
WHERE type IN ('trigger', 'view') AND lower(tbl_name) IN (SELECT value FROM json_each(?)) LIMIT 1"""

_COMMENT: Final = re.compile(r"^\s*--.*$", re.MULTILINE)


def pending(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    """Return the migration that `make` would apply, if any. Raises BrokerRefused if this version cannot use the existing tables."""
    is_there = tables_of(store.namespace) & tables_in(connection)
    return check_tables(connection, store, sql) if is_there else upgrade_from(0, store)


def upgrade_from(version: int, store: StoreFile, missing: Sequence[str] = ()) -> Upgrade:
    done = [Migration(VERSION, ADDITIONS if version else "The tables.")] if missing or not version else []
    place = f"namespace {store.namespace!r} of {store.path}"
    return Upgrade(place=place, version=version, migrations=tuple(done), missing=tuple(missing))


def make(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    """Create the missing tables and indexes, unless another process has done so, and return what was done."""
    execute_with_lock(connection, store, "BEGIN IMMEDIATE")
    try:
        found = pending(connection, store, sql)
        for statement in _statements(found, sql) if found.migrations else ():
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return found


def script(found: Upgrade, sql: Statements, *, shared: bool = False) -> str:
    """Return a script for the `sqlite3` shell that does what `make` does. If anything that it creates already exists, the script fails and
    changes nothing."""
    if not found.migrations:
        return f"-- {found.place} is up to date (version {found.version})\n"
    head = f"-- taskflow, {found.place}: from version {found.version} to {VERSION}."
    shrinking = "" if shared else "PRAGMA auto_vacuum=INCREMENTAL;\n"  # a file that has tables keeps its setting
    return "\n\n".join([head, f".bail on\n{shrinking}BEGIN IMMEDIATE;", *(f"{each};" for each in _statements(found, sql)), "COMMIT;\n"])


def _statements(found: Upgrade, sql: Statements) -> Iterator[str]:
    yield from found.missing or _objects(sql).values()
    yield sql.script(f"""INSERT OR REPLACE INTO "~meta" (name, value) VALUES ('version', {VERSION}), ('digest', {digest()})""")


_NAME: Final = re.compile(r'CREATE (?:TABLE|INDEX) "([^"]+)"')


def _objects(sql: Statements) -> dict[str, str]:
    """Return the statements that create the tables and indexes, by name, as SQLite stores them."""
    statements = [part.strip() for part in sql.script(_COMMENT.sub("", ddl())).split(";")[:-1]]
    return {_NAME.match(each)[1]: each for each in statements}  # type: ignore[index]


def tables_in(connection: sqlite3.Connection) -> set[str]:
    """Return the names of the file's tables, without SQLite's own."""
    statement = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    return {str(name) for (name,) in connection.execute(statement)}


def tables_of(namespace: str) -> set[str]:
    return {table_prefix(namespace) + name for name in names()}


_ALWAYS_THERE: Final = ("meta", "counted", "jobs", "keys", "sessions", "schedules", "queues", "tags", "declared")


def tables_of_namespaces(there: set[str]) -> set[str]:
    """Return the tables of all taskflow namespaces. An older version's namespace may lack some, and a newer one's may have more."""
    prefixes = {name.removesuffix("counted") for name in there if name.endswith("_counted")}
    whole = [prefix for prefix in prefixes if {f"{prefix}{name}" for name in _ALWAYS_THERE} <= there]
    return {name for name in there if name.startswith(tuple(whole))}


def check_tables(connection: sqlite3.Connection, store: StoreFile, sql: Statements) -> Upgrade:
    """Return the migration that adds what the tables lack, if any. Raises BrokerRefused if this version can't use the
    tables, or if they have a trigger or a view, which would run another program's SQL."""
    try:
        [(version, made_from, has_triggers)] = connection.execute(sql[_VERSION]).fetchall()
    except sqlite3.OperationalError as error:
        raise _not_ours(store) from error
    if not isinstance(version, int):
        raise _not_ours(store)
    namespace = f"{store.path}: namespace {store.namespace!r}"
    if version > VERSION:
        raise BrokerRefused(
            f"{namespace} was made by a newer taskflow (table version {version}, this one supports {VERSION}): upgrade taskflow, or use "
            "another file"
        )
    missing = [] if made_from == digest() else _missing(connection, namespace, sql)
    if has_triggers:
        for kind, name in connection.execute(sql[_INTRUDERS], (json.dumps(sorted(tables_of(store.namespace))),)):
            raise BrokerRefused(
                f"{store.path}: the tables of namespace {store.namespace!r} have the {kind} {name!r}, which is not part of taskflow: "
                "drop it if you trust the rest of the file, or use another file"
            )
    return upgrade_from(version, store, missing)


def _missing(connection: sqlite3.Connection, namespace: str, sql: Statements) -> list[str]:
    """Return the statements that create missing tables and indexes. Raises BrokerRefused if an existing one differs. Another version's
    additional ones may remain, because SQLite maintains its indexes: see `records.TABLES`."""
    there = dict(connection.execute("SELECT name, sql FROM main.sqlite_master WHERE sql IS NOT NULL").fetchall())
    needed = _objects(sql)
    missing = {name: text for name, text in needed.items() if name not in there}
    # a new table of entries would lack the entries of existing records
    without = {f"{sql.prefix}{index.name}" for index in INDEXES if index.entries and f"{sql.prefix}{TABLES[index.kind]}" in there}
    if other := [name for name, text in needed.items() if there.get(name, text) != text] or sorted(without & missing.keys()):
        raise BrokerRefused(f"{namespace} was made by a version of taskflow whose {other[0]} differs: use that version, or another file")
    return list(missing.values())


def _not_ours(store: StoreFile) -> BrokerError:
    return BrokerRefused(
        f"{store.path}: the tables of namespace {store.namespace!r} belong to another program: use another namespace or file"
    )


def execute_with_lock(connection: sqlite3.Connection, store: StoreFile, statement: str) -> list[Any]:
    """Execute a statement that prepares the store, and return its rows. While the file is locked, retry until the store's timeout."""
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
