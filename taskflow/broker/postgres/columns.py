"""Lists of the columns of jobs in SQL: ``@sent{all_%n %t[]}`` stands for the pattern, filled in for each column and joined by commas.

%n is a column's name, %t its type. The lists are made from the job schema:

@sent     what is sent of a call, in the order of `enqueue.envelope_columns`
@as_sent  those of its columns that are stored as they were sent
"""

from __future__ import annotations

import re
from typing import Final

from taskflow.model.job_schema import AS_SENT, BY_NAME, INSTANT, Field

_LIST: Final = re.compile(r"@(as_sent|sent)\{([^}]*)\}")


def _type_of(field: Field) -> str:
    if field.kind.type is int:
        return "bigint" if field.kind is INSTANT else "integer"
    return "bytea" if field.kind.type is bytes else "text"


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


def filled_in(sql: str) -> str:
    """Return SQL with its lists written out."""
    return _LIST.sub(lambda found: _list(SENT if found[1] == "sent" else _AS_SENT, found[2]), sql)


def _list(columns: dict[str, str], pattern: str) -> str:
    return ", ".join(pattern.replace("%n", name).replace("%t", kind) for name, kind in columns.items())
