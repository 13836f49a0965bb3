"""Decodes rows into records, including rows that come with a notification."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from taskflow.broker.engine.records import HEADERS, Index, Kind, Position, Type
from taskflow.broker.engine.seam import Group, Record, Ref, Rev
from taskflow.broker.postgres.changes import PARTS
from taskflow.broker.postgres.queries import placed
from taskflow.broker.postgres.tables import JOB

Row = Any
"""An asyncpg.Record, or a list of a row's values."""


# --- rows that come with a notification -----------------------------------------------------------------------


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


_OF_TYPE: Final[dict[Type, Callable[[bytes], Any]]] = {
    Type.SMALL: _number,
    Type.NUMBER: _number,
    Type.NAME: bytes.decode,
    Type.BYTES: bytes,
}
_DECODERS: Final[list[Callable[[bytes], Any]]] = [
    *(_number, _number, bytes, _number, bytes),
    *(_OF_TYPE[field.type] for field in HEADERS[Kind.JOB]),
    *(bytes, bytes, bytes, bytes.decode),
]
_HEAD: Final = Struct(">Ii")


def parse_row(packed: bytes) -> list[Any]:
    """Return the values of a row of the type `row`, as record_send() packs it: see tell_ended() in wakeups.sql.

    May raise any exception if the row cannot be decoded.
    """
    values, at = list[Any](), 4  # after the number of columns; each column is its type, its length and its bytes
    for decode in _DECODERS:
        _, length = _HEAD.unpack_from(packed, at)
        at += _HEAD.size + max(0, length)
        values.append(None if length < 0 else decode(packed[at - length : at]))
    return values


# --- records ------------------------------------------------------------------------------------------------------

_FIRST: Final = 5
_COLUMNS: Final = ("part", "kind", "id", "rev", "value", *JOB, *PARTS, "damage")
AT: Final = {name: number for number, name in enumerate(_COLUMNS)}
_FIELDS: Final = {kind: [(AT[column], name) for column, name in placed(kind).items()] for kind in HEADERS}
_JOB_NAMES: Final = tuple(JOB)
_END_OF_HEADER: Final = _FIRST + len(JOB)


def _rev(number: int) -> Rev:
    return number.to_bytes(8, "big", signed=True)


def record_of(row: Row) -> Record:
    """Return the record in a row of the type `row`."""
    kind = row[1]
    if kind == Kind.JOB:
        header = dict(zip(_JOB_NAMES, row[_FIRST:_END_OF_HEADER], strict=True))
    else:
        header = {name: row[at] for at, name in _FIELDS[kind]}
    return Record(Ref(kind, row[2]), _rev(row[3]), header, *row[_END_OF_HEADER : _END_OF_HEADER + 4])


def leased_record(row: Row, session: bytes) -> Record:
    """Return a job that a claim leased. Its header has only what a lease needs."""
    job_id, rev, flags, priority, queue, job, created_at, due_at, expires_at, epoch, claim, _, sent, state, content, damage, *_ = row
    header = {
        "flags": flags,
        "priority": priority,
        "queue": queue,
        "job": job,
        "created_at": created_at,
        "due_at": due_at,
        "expires_at": expires_at,
        "epoch": epoch,
        "session": session,
        "claim": claim,
    }
    return Record(Ref(Kind.JOB, job_id), _rev(rev), header, sent, state, content, damage)


def claim_of(record: Record) -> bytes:
    claim: bytes = record.header["claim"]
    return claim


def position_of(index: Index, record: Record, row: Row) -> Position:
    header, job_id = record.header, record.ref.id
    at = tuple([job_id if field == "id" else -header[field[1:]] if field[0] == "-" else header[field] for field in index.at])
    if index.entries is None:
        return at
    value = row["value"]
    return (value.decode() if index.entries is Type.NAME else value, *at)


def add_to_group(groups: dict[Position, Group], index: Index, row: Row) -> None:
    """Add a group, or its last position, from a row. There, `rev` is the size of the group, and `kind` is 1 if the position is the last."""
    position = tuple([row["id"] if field == "id" else -row[field[1:]] if field[0] == "-" else row[field] for field in index.at])
    prefix = position[: index.groups]
    known = groups.get(prefix)
    if not index.listed:
        groups[prefix] = Group(prefix, row["rev"], None, None)
    elif known is None:
        groups[prefix] = Group(prefix, row["rev"], position, position if index.counted else None)
    else:
        groups[prefix] = known._replace(last=position) if row["kind"] else known._replace(first=position)
