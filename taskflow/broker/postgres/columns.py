"""Expands lists of job columns in SQL: ``@sent{all_%n %t[]}`` becomes the
pattern in braces, repeated for each column of @sent and separated by commas.

In a pattern, %n is the column's name, %t its type and %d its default. The lists come from the job schema:

@sent      the columns sent for a call, in the order of `enqueue.envelope_columns`
@as_sent   the columns of @sent that are stored unchanged
@changing  the columns that can change after the job has been added
@claim, @outcome, @redo, @drop  the columns that a move of this kind clears
@record    the columns of a record, in the order in which `rows.parse_record` decodes them
@sized     the columns of @record whose size is limited

``@lighten(j);`` leaves out of a record what may be large. A record that is passed to a function has its values in it, instead of
references to where they are stored. save() keeps the stored payload and extras.
"""

from __future__ import annotations

import re
from typing import Final

from taskflow.broker.postgres.bounds import MOST_BYTES
from taskflow.broker.postgres.rows import RECORD, SIZED
from taskflow.model.job_schema import AS_SENT, BY_NAME, CLAIMED, COUNT, DROP, FIELDS, INSTANT, OUTCOME, REDO, Field

_LIST: Final = re.compile(r"@(\w+)\{([^}]*)\}")
_OWN_COLUMNS: Final = {"claim": ("session", "request", "number"), "name": ("job",), "spoilt": ()}
_FIXED: Final = frozenset({"id", "seq", "created_at", "queue", "job", "priority", "key", "payload", "extras"})


def _type_of(field: Field) -> str:
    if field.kind.type is int:
        return "bigint" if field.kind is INSTANT else "integer"
    return "bytea" if field.kind.type is bytes else "text"


_LIGHT: Final = {
    "payload": "NULL",
    "result": "NULL",
    "extras": "substr(%j.extras, 1, 2048)",
    "cancel_requested": "left(%j.cancel_requested, 1000)",
    **{
        column: f"CASE WHEN octet_length(%j.{column}) <= {MOST_BYTES} THEN %j.{column} END"
        for column in ("worker", "errors", "progress", "reason", "waiting_for")
    },
}
"""For each column that may be large, what `@lighten` leaves of it."""

_LIGHTEN: Final = re.compile(r"@lighten\((\w+)\)")
_LIGHTENED: Final = f"SELECT {', '.join(_LIGHT.values())} INTO {', '.join(f'%j.{column}' for column in _LIGHT)}"

_AS_SENT: Final = {column: _type_of(BY_NAME[column]) for column in AS_SENT}
SENT: Final = {
    "queue": "text",
    "job": "text",
    "after": "bigint",
    "at": "bigint",
    "expiry": "bigint",
    "conflict": "integer",
    "extras": "bytea",
    "joins": "bytea",
} | _AS_SENT


COLUMNS: Final = {column: field for field in FIELDS for column in _OWN_COLUMNS.get(field.name, (field.name,))}
"""The columns of the table, each with its field."""


def _default_of(field: Field) -> str:
    return str(field.default) if field.kind is COUNT else "NULL"


_LISTS: Final = {
    "sent": SENT,
    "as_sent": _AS_SENT,
    "record": RECORD,
    "sized": SIZED,
    "changing": [column for column in COLUMNS if column not in _FIXED],
    **{move: [column for column, field in COLUMNS.items() if move in field.cleared_by] for move in (CLAIMED, OUTCOME, REDO, DROP)},
}


def filled_in(sql: str) -> str:
    """Return the SQL with its lists expanded."""
    sql = _LIGHTEN.sub(lambda found: _LIGHTENED.replace("%j", found[1]), sql)
    return _LIST.sub(lambda found: ", ".join(_written(found[2], column) for column in _LISTS[found[1]]), sql)


def _written(pattern: str, column: str) -> str:
    kind = SENT.get(column, "")
    default = _default_of(COLUMNS[column]) if column in COLUMNS else ""
    return pattern.replace("%n", column).replace("%t", kind).replace("%d", default)
