"""Rows as records. What a row holds may be spoilt: a field that cannot be read spoils its own job, no other.

A row is decoded at full speed first, and field by field only when that raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from taskflow.broker.postgres.bounds import MOST_BYTES, MOST_PAYLOAD_BYTES
from taskflow.model.clock import instant_of
from taskflow.model.envelope import DEFAULT_QUEUE, Envelope, unpack_extras
from taskflow.model.progress import unpack_progress
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.stored import FieldReader, instant, maybe, text, whole
from taskflow.model.verdict import unpack_errors

Row = Any
"""asyncpg's Record: a column by its name."""


def reader_of(row: Row) -> FieldReader:
    """Return a reader that knows the values that the server did not send: a line names a column and what stands in it."""
    reader = FieldReader()
    for line in (row["unreadable"] or "").splitlines():
        column, _, stored = line.partition("\t")
        reader.note(column, stored, "it is too long")
    return reader


# --- records --------------------------------------------------------------------------------------------------

_SMALL: Final = ("extras", "progress", "worker", "reason", "waiting_for", "errors")
_MOST: Final = dict.fromkeys(_SMALL, MOST_BYTES) | dict.fromkeys(("payload", "result"), MOST_PAYLOAD_BYTES)
"""Column to the most bytes that are fetched of it."""

_PLAIN: Final = (
    "id", "job", "queue", "status", "priority", "created_at", "due_at", "claimed_at", "started_at", "ended_at", "expires_at", "failures",
    "crashes", "snoozes", "hand_backs", "epoch",
)  # fmt: skip


def _if_too_long(column: str, most: int) -> str:
    return f"CASE WHEN octet_length({column}) > {most} THEN concat(E'{column}\\t', octet_length({column}), ' bytes') END"


RECORD_COLUMNS: Final = ", ".join(
    (
        *_PLAIN,
        "cancel_requested IS NOT NULL AS cancel_requested",
        *(f"CASE WHEN octet_length({column}) <= {most} THEN {column} END AS {column}" for column, most in _MOST.items()),
        f"nullif(concat_ws(E'\\n', {', '.join(_if_too_long(column, most) for column, most in _MOST.items())}), '') AS unreadable",
    )
)
"""What `record_of` takes of a row of jobs. A value that is too long is not fetched, but told of."""

_NO_ENVELOPE: Final = Envelope(id=b"", job="", payload=b"")


def record_of(row: Row) -> Record:
    if isinstance(row, BareRow):
        return _spoilt_record(row)
    try:
        return _sound_record(row)
    except Exception:  # whatever a decoder raises
        return _spoilt_record(row)


def _sound_record(row: Row) -> Record:
    if row["unreadable"] is not None:
        raise ValueError(row["unreadable"])
    extras = unpack_extras(row["extras"])
    return Record(
        id=row["id"],
        job=row["job"],
        queue=row["queue"],
        status=BY_CODE[row["status"]],
        priority=row["priority"],
        max_attempts=extras.get("max_attempts", _NO_ENVELOPE.max_attempts),
        created_at=instant_of(row["created_at"]),
        due_at=instant_of(row["due_at"]),
        claimed_at=maybe(row["claimed_at"], instant_of),
        started_at=maybe(row["started_at"], instant_of),
        ended_at=maybe(row["ended_at"], instant_of),
        expires_at=maybe(row["expires_at"], instant_of),
        failures=row["failures"],
        crashes=row["crashes"],
        snoozes=row["snoozes"],
        hand_backs=row["hand_backs"],
        epoch=row["epoch"],
        worker=maybe(row["worker"], text),
        progress=unpack_progress(row["progress"]),
        result=row["result"],
        payload=row["payload"],
        reason=maybe(row["reason"], text),
        waiting_for=maybe(row["waiting_for"], text),
        errors=unpack_errors(row["errors"]),
        cancel_requested=row["cancel_requested"],
        headers=extras.get("headers", {}),
    )


def _spoilt_record(row: Row) -> Record:
    reader = reader_of(row)

    def instant_at(column: str) -> Any:
        return reader.read(column, row[column], _maybe_instant, None)

    def words(column: str) -> str | None:
        return reader.read(column, row[column], _maybe_text, None)

    def count(column: str) -> int:
        return reader.read(column, row[column], whole, 0)

    extras: dict[str, Any] = reader.read("extras", row["extras"], extras_of, {})
    return Record(
        id=row["id"],
        job=reader.read("job", row["job"], name, ""),
        queue=reader.read("queue", row["queue"], name, DEFAULT_QUEUE),
        status=reader.read("status", row["status"], BY_CODE.__getitem__, Status.FAILED),
        priority=reader.read("priority", row["priority"], _priority, 0),
        max_attempts=extras.get("max_attempts", _NO_ENVELOPE.max_attempts),
        created_at=reader.read("created_at", row["created_at"], instant, instant_of(0)),
        due_at=reader.read("due_at", row["due_at"], instant, instant_of(0)),
        claimed_at=instant_at("claimed_at"),
        started_at=instant_at("started_at"),
        ended_at=instant_at("ended_at"),
        expires_at=instant_at("expires_at"),
        failures=count("failures"),
        crashes=count("crashes"),
        snoozes=count("snoozes"),
        hand_backs=count("hand_backs"),
        epoch=count("epoch"),
        worker=words("worker"),
        progress=reader.read("progress", row["progress"], unpack_progress, None),
        result=row["result"],
        payload=row["payload"],
        reason=words("reason"),
        waiting_for=words("waiting_for"),
        errors=reader.read("errors", row["errors"], unpack_errors, ()),
        cancel_requested=row["cancel_requested"],
        headers=extras.get("headers", {}),
        unreadable=reader.unreadable,
    )


def extras_of(stored: bytes | None) -> dict[str, Any]:
    if stored is not None and len(stored) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return unpack_extras(stored)


def _maybe_instant(stored: Any) -> Any:
    return maybe(stored, instant)


def _maybe_text(stored: Any) -> str | None:
    return maybe(stored, text)


def _priority(stored: Any) -> int:
    return whole(stored, -100, 100)


def name(stored: Any) -> str:
    if isinstance(stored, _NotUtf8):
        raise ValueError("it is no UTF-8")
    return text(stored)


# --- text that is no UTF-8 ------------------------------------------------------------------------------------


class BareRow(dict[str, Any]):
    """A row of which text came as bytes, by a statement of `bare`: a database in SQL_ASCII holds any. It is never read as a sound one."""

    def __iter__(self) -> Iterator[str]:
        raise TypeError("it is read by the names of its columns")

    @classmethod
    def of(cls, row: Row) -> BareRow:
        return cls((column, _text_of(value) if column in row["bare"] else value) for column, value in row.items())


class _NotUtf8(str):
    """With the bytes written out that are none."""


def _text_of(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _NotUtf8(raw.decode(errors="backslashreplace"))


def bare(statement: str, columns: Sequence[tuple[str, str]]) -> str:
    """The same rows with their text as bytes, given the columns' names and types. `bare` lists those columns."""
    names = [column for column, kind in columns if kind == "text"]
    shown = (f"convert_to({column}, 'SQL_ASCII') AS {column}" if column in names else column for column, _ in columns)
    listed = ", ".join(f"'{column}'" for column in names)
    return f"SELECT {', '.join(shown)}, ARRAY[{listed}]::text[] AS bare FROM ({statement}) AS it"
