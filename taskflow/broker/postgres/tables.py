"""Derives the tables of records from the declaration in `engine/records.py`."""

from __future__ import annotations

from typing import Final

from taskflow.broker.engine.records import HEADERS, INDEXES, TABLES, Field, Index, Kind, Owner, Type

OTHERS: Final = tuple(kind for kind in TABLES if kind not in (Kind.JOB, Kind.KEY))
"""The kinds whose changes are sent as JSON, because few of their records change at a time."""

BY_INDEX: Final = {index.name: index for index in INDEXES}
JOB: Final = {field.name: field for field in HEADERS[Kind.JOB]}
WRITTEN: Final = {kind: [field for field in fields if field.owner is None] for kind, fields in HEADERS.items()}
"""The fields that a put writes to any record."""
RESTARTED: Final = {kind: [field for field in fields if field.owner in (Owner.ADDITION, Owner.CLAIM)] for kind, fields in HEADERS.items()}
"""The fields that a put also writes if the record is new, or if the put `restarts` the job."""

_TYPES: Final = {Type.SMALL: "smallint", Type.NUMBER: "bigint", Type.NAME: "text", Type.BYTES: "bytea"}

_MADE_APART: Final = {(Kind.SESSION, "request")}
"""Fields that are stored in a separate table: see `requests` in tables.sql."""

_ROW: Final = {
    Kind.JOB: "autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 100000, "
    "autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0.1, "
    "autovacuum_vacuum_cost_limit = 100, autovacuum_vacuum_cost_delay = 1, toast.autovacuum_vacuum_threshold = 10000, "
    "toast.autovacuum_vacuum_scale_factor = 0.02",
    Kind.SESSION: "fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0",
    Kind.SCHEDULE: "fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0",
}
"""Table settings, by kind. Jobs are vacuumed when the dead rows exceed 10,000 plus 2 % of the table, in steps so short that a claim hardly
waits for one. The total rate is that of the server's default settings (200 in 2 ms): a higher rate would take processor time and log
bandwidth from claims and commits."""

_MORE_OF_JOBS: Final = """\
ALTER TABLE @.jobs ALTER content SET STORAGE EXTERNAL, ADD CONSTRAINT a_header_is_possible CHECK (
    status BETWEEN S.HELD AND S.BURIED AND octet_length(id) = 16 AND least(epoch, due_at, expires_at, ended_at, fade_at) >= 0
    AND (status <> S.RUNNING OR coalesce(octet_length(session) = 16 AND octet_length(claim) = 12, false))
    AND (status > S.RUNNING) = (ended_at IS NOT NULL) AND (status > S.RUNNING) = (fade_at IS NOT NULL)
    AND (status <> S.FAILED OR cause IS NOT NULL) AND octet_length(queue) BETWEEN 1 AND 400 AND octet_length(job) BETWEEN 1 AND 800
);
"""
"""The constraint on jobs. Other programs may write rows too, and a row that broke a rule would never be found, or would make listings fail.
It is one constraint, because PostgreSQL prepares each constraint again for each statement, which takes longer than checking it."""

SETTINGS: Final = (
    "SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off "
    "SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off"
)
"""Settings of functions that read or write records. Plans are made once, perhaps with few records, so they must not scan whole tables."""


def type_of(field: Field) -> str:
    return _TYPES[field.type]


def is_made_apart(kind: int, field: Field) -> bool:
    return (kind, field.name) in _MADE_APART


def fields_of(kind: int) -> list[Field]:
    """Return the fields of a kind that are columns of its table."""
    return [field for field in HEADERS[kind] if not is_made_apart(kind, field)]


# --- tables and indexes -------------------------------------------------------------------------------------------


def tables() -> str:
    """Return the tables of all kinds, their indexes, and the type of the rows that the functions return."""
    row = ", ".join(f"{name} {type_of(field)}" for name, field in JOB.items())
    named, bodies = "part smallint, kind smallint, id bytea, rev bigint, value bytea", "sent bytea, state bytea, content bytea"
    lines = [f"CREATE TYPE @.row AS ({named}, {row}, {bodies}, damage text);"]
    for kind, table in TABLES.items():
        columns = ["id bytea PRIMARY KEY", "rev bigint NOT NULL", *map(_column, fields_of(kind)), bodies]
        if kind == Kind.SESSION:
            columns.append('listener text COLLATE "C" CHECK (octet_length(listener) BETWEEN 1 AND 63)')
        settings = _ROW.get(kind, "fillfactor = 80, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02")
        unlogged = "UNLOGGED " if kind == Kind.END else ""  # the table contains only hints
        lines.append(f"CREATE {unlogged}TABLE @.{table} ({', '.join(columns)}) WITH ({settings});")
    lines.append(_MORE_OF_JOBS)
    lines.extend(_index(index) for index in INDEXES)
    return "\n".join(filter(None, lines))


def _column(field: Field) -> str:
    collated = ' COLLATE "C"' if field.type is Type.NAME else ""
    default = "" if field.default is None else " NOT NULL"
    if field.name == "seq":
        default = " NOT NULL GENERATED BY DEFAULT AS IDENTITY"
    return f"{field.name} {type_of(field)}{collated}{default}"


def _index(index: Index) -> str:
    table = TABLES[index.kind]
    if index.entries is not None:
        made = f"CREATE TABLE @.{index.name} (value {_entry_type(index)} NOT NULL, id bytea NOT NULL, PRIMARY KEY (value, id));"
        return f"{made}\nCREATE INDEX {index.name}_of ON @.{index.name} (id);"
    if not index.listed or (index.at == ("id",) and not index.when):
        return ""
    where = f" WHERE {index.when}" if index.when else ""
    return f"CREATE INDEX {table}_{index.name} ON @.{table} ({', '.join(places(index))}){where};"


def _entry_type(index: Index) -> str:
    return 'text COLLATE "C"' if index.entries is Type.NAME else "bytea"


def places(index: Index) -> list[str]:
    """Return the expressions of an index's position."""
    return [f"(-{field[1:]})" if field.startswith("-") else field for field in index.at]
