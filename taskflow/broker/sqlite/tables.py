"""The tables of records, derived from the declaration in `engine/records.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from taskflow.broker.engine.records import HEADERS, INDEXES, Field, Index, Kind, Owner, Type

TABLES: Final[Mapping[int, str]] = {
    Kind.JOB: "jobs",
    Kind.KEY: "keys",
    Kind.SESSION: "sessions",
    Kind.SCHEDULE: "schedules",
    Kind.QUEUE: "queues",
    Kind.END: "ends",
    Kind.ACTION: "actions",
    Kind.INBOX: "inbox",
    Kind.MARK: "facts",
}
"""The table of each kind of record."""

BY_INDEX: Final = {index.name: index for index in INDEXES}
ENTRIES: Final = {kind: [index for index in INDEXES if index.entries is not None and index.kind == kind] for kind in HEADERS}
"""The indexes of each kind whose values a put hands over. Each is a table."""

PARTS: Final = ("sent", "state", "content")
FIELDS: Final = {kind: {field.name: field for field in fields} for kind, fields in HEADERS.items()}
WRITTEN: Final = {kind: {field.name for field in fields if field.owner is None} for kind, fields in HEADERS.items()}
"""The fields that a put writes."""
RESTARTED: Final = {kind: {field.name for field in fields if field.owner is not Owner.STORE} for kind, fields in HEADERS.items()}
"""The fields that it writes if the record is new, or if it `restarts`."""

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
"""Other programs may write rows too. A row that breaks one of these rules would never be found, or break a page. SQLite checks only
those that name a changed column."""

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
    """Return True if the store numbers the records of this kind: the number is the row's."""
    return "seq" in FIELDS[kind]


def script() -> str:
    """Return the statements that create all tables and indexes. "~x" stands for the namespace's table x."""
    return "\n".join([_META, *map(_table, TABLES), *filter(None, map(_index, INDEXES))])


def digest() -> int:
    """Return a number that identifies the tables. A client whose tables differ is refused."""
    return int.from_bytes(hashlib.sha256(script().encode()).digest()[:7], "big")


def names() -> set[str]:
    """Return the names of all tables, without the namespace."""
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
    # SQLite appends the row's number or id by itself, and sorts the rows that are equal before it
    columns = list(places(index))
    while len(columns) > 1 and columns[-1] in ("id", "seq"):
        columns.pop()
    where = f" WHERE {index.when}" if index.when else ""
    return f'CREATE INDEX "~{index_name(index)}" ON "~{TABLES[index.kind]}" ({", ".join(columns)}){where};'


def has_own_index(index: Index) -> bool:
    """Return True if the index is one of SQLite's, and not the order of the table itself."""
    return index.listed and index.entries is None and bool(index.when or index.at not in (("id",), ("seq",)))


def index_name(index: Index) -> str:
    return f"{TABLES[index.kind]}_{index.name}"


def falling_column(name: str) -> str:
    return f"falling_{name}"


def places(index: Index) -> tuple[str, ...]:
    """Return the columns of an index's position."""
    return tuple([falling_column(field[1:]) if field[0] == "-" else field for field in index.at])
