"""Decodes rows into records. An unreadable field affects only its own job.

A row is first decoded at full speed, and field by field only if that fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from struct import Struct
from typing import Any, Final

import msgspec

from taskflow.broker.postgres.bounds import MOST_BYTES, MOST_PAYLOAD_BYTES
from taskflow.model import record
from taskflow.model.envelope import unpack_extras
from taskflow.model.job_schema import BY_NAME, DEFAULT_QUEUE, FIELDS
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.stored_values import FULL_SPEED, FieldReader, text

Row = Any
"""An asyncpg.Record or a BareRow. Both give access to columns by name."""


def reader_of(row: Row) -> FieldReader:
    """Return a reader for the row's fields. Oversized values, which the query leaves out, are already noted in it as unreadable.

    Each line of the row's `unreadable` column holds a column name, a tab and the size of the value.
    """
    reader = FieldReader()
    for line in (row["unreadable"] or "").splitlines():
        column, _, stored = line.partition("\t")
        reader.note(column, stored, "it is too long")
    return reader


# --- records --------------------------------------------------------------------------------------------------

_SHOWN: Final = tuple(field for field in FIELDS if field.name == "extras" or field.name in Record.__struct_fields__)
SIZED: Final = {
    field.name: MOST_PAYLOAD_BYTES if field.kind.most > MOST_BYTES else MOST_BYTES
    for field in _SHOWN
    if field.kind.type is not int and field.kind.least != field.kind.most
}
"""The columns of limited size, each with the maximum number of bytes that are fetched."""

RECORD: Final = (*(field.name for field in _SHOWN if field.name not in SIZED), "job", *SIZED)
"""The columns of a record, in the order in which SQL packs them."""


def _if_too_long(column: str, most: int) -> str:
    size = f"pg_catalog.octet_length({column})"
    return f"CASE WHEN {size} OPERATOR(pg_catalog.>) {most} THEN pg_catalog.concat(E'{column}\\t', {size}, ' bytes') END"


def _record_columns() -> str:
    """Return the columns of a record, in SQL. Here and in all statements outside our functions, every function and operator
    is named with its schema, because the search_path may begin with a schema in which others create."""
    return ", ".join(
        (
            *RECORD[: -len(SIZED)],
            *(
                f"CASE WHEN pg_catalog.octet_length({column}) OPERATOR(pg_catalog.<=) {most} THEN {column} END AS {column}"
                for column, most in SIZED.items()
            ),
            "pg_catalog.concat_ws(E'\\n', " + ", ".join(_if_too_long(column, most) for column, most in SIZED.items()) + ") AS unreadable",
        )
    )


RECORD_COLUMNS: Final = _record_columns()
"""The columns that `record_of` needs, in SQL. An oversized value is not fetched; `unreadable` reports its size instead."""

PAGE_COLUMNS: Final = ", ".join(
    (
        "now_at, examined, is_listed",
        *(f"(job).{column} AS {column}" for column in ("seq", "session", "request", "number")),
        *(f"(job).{column} AS {column}" for column in RECORD),
        "unreadable",
    )
)
"""The columns of a row of page(), in SQL."""

_RecordRow: Any = msgspec.defstruct("_RecordRow", (*RECORD, "unreadable"))

_DECODERS: Final[list[Callable[[bytes], Any]]] = [
    bytes.decode if name in ("queue", "job") or BY_NAME[name].kind.type is str
    else bytes if BY_NAME[name].kind.type is bytes
    else partial(int.from_bytes, signed=True)
    for name in RECORD
]  # fmt: skip


def parse_record(packed: bytes) -> Record | None:
    """Decode the record sent with the notification that its job has ended:
    see tell_ended() in wakeups.sql. Return None if it cannot be read."""
    values, at = list[Any](), 4  # after the number of columns; each column is its type, its length and its bytes
    try:
        for decode in _DECODERS:
            _, length = _HEAD.unpack_from(packed, at)
            at += _HEAD.size + max(0, length)
            values.append(None if length < 0 else decode(packed[at - length : at]))
        return _record_of(_RecordRow(*values, None), FULL_SPEED)
    except Exception:  # decoders may raise anything
        return None


_HEAD: Final = Struct(">Ii")


def record_of(row: Row) -> Record:
    job = fields_of(_RecordRow, row)
    if not job.unreadable and not isinstance(row, BareRow):
        with contextlib.suppress(Exception):  # decoders may raise anything
            return _record_of(job, FULL_SPEED)
    return _record_of(job, reader_of(row))


def _record_of(job: Any, reader: FieldReader) -> Record:
    no_extras: dict[str, Any] = {}
    return record.record_of(
        job,
        reader,
        id=job.id,
        name=reader.read("job", job.job, name, ""),
        queue=reader.read("queue", job.queue, name, DEFAULT_QUEUE),
        status=reader.read("status", job.status, BY_CODE.__getitem__, Status.FAILED),
        extras=reader.read("extras", job.extras, extras_of, no_extras),
    )


def extras_of(stored: bytes | None) -> dict[str, Any]:
    if stored is not None and len(stored) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return unpack_extras(stored)


def name(stored: Any) -> str:
    if isinstance(stored, _NotUtf8):
        raise ValueError("it is not UTF-8")
    return text(stored)


# --- text that is not UTF-8 -----------------------------------------------------------------------------------


class BareRow(dict[str, Any]):
    """A row whose text was fetched as bytes by a query from `bare`, because an SQL_ASCII database may contain any bytes. It is
    always decoded field by field."""

    def __iter__(self) -> Iterator[str]:
        raise TypeError("read it by the names of its columns")

    @classmethod
    def of(cls, row: Row) -> BareRow:
        return cls((column, _text_of(value) if column in row["bare"] else value) for column, value in row.items())


class _NotUtf8(str):
    """A string decoded from bytes that are not valid UTF-8; the invalid bytes are backslash-escaped."""


def _text_of(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _NotUtf8(raw.decode(errors="backslashreplace"))


def fields_of(kind: Any, row: Row) -> Any:
    """Return a struct of the class `kind` with the columns of a row."""
    return kind(**{column: row[column] for column in kind.__struct_fields__})


def bare(statement: str, columns: Sequence[tuple[str, str]]) -> str:
    """Wrap a query so that its text columns are returned as bytes. `columns` holds the name and type of each column.

    The result has one more column, `bare`, which lists the names of the text columns.
    """
    names = [column for column, kind in columns if kind == "text"]
    shown = (f"pg_catalog.convert_to({column}, 'SQL_ASCII') AS {column}" if column in names else column for column, _ in columns)
    listed = ", ".join(f"'{column}'" for column in names)
    return f"SELECT {', '.join(shown)}, ARRAY[{listed}]::pg_catalog.text[] AS bare FROM ({statement}) AS it"
