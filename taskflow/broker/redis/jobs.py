"""Decodes stored jobs into leases and records. A field that cannot be read has its default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker.redis.fields import FIELDS
from taskflow.broker.redis.packing import unpack, unpack_claim
from taskflow.model.clock import instant_of, to_seconds
from taskflow.model.envelope import Envelope, Lease, unpack_extras
from taskflow.model.progress import Progress, unpack_progress
from taskflow.model.record import BY_CODE, Record
from taskflow.model.stored import FieldReader, Unreadable, maybe, octets, text, whole
from taskflow.model.verdict import RunError, unpack_errors


def _defaults() -> list[Any]:
    numbers = {"epoch", "failures", "crashes", "snoozes", "hand_backs", "awaits"}
    return [0 if field in numbers else None for field in FIELDS]


_DEFAULTS: Final = _defaults()
_PLAIN: Final = Envelope(id=b"", job="", payload=b"")


class Head(NamedTuple):
    """The first part of the replies of `read`, `browse` and `claim`.

    `names`     names of queues and jobs by their numbers, without those that cannot be read
    `is_armed`  whether the session will get a wake-up for new jobs
    """

    wall: int
    names: dict[int, str]
    is_armed: bool


def head_of(packed: bytes) -> Head:
    wall, texts, *rest = unpack(packed)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    try:
        names = {number: text.decode()[2:] for number, text in pairs}
    except UnicodeDecodeError:
        names = {number: text.decode()[2:] for number, text in zip(texts[::2], texts[1::2], strict=True) if _is_utf8(text)}
    return Head(int(wall), names, bool(rest and rest[0]))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def records_of(reply: Sequence[bytes]) -> dict[bytes, Record]:
    head = head_of(reply[0])
    return {reply[i]: _record(reply[i], unpack(reply[i + 1]), head.names) for i in range(1, len(reply), 2)}


def _completed(fields: list[Any]) -> list[Any]:
    """Return all fields, with defaults in place of absent ones."""
    present = [default if field is False else field for field, default in zip(fields, _DEFAULTS, strict=False)]
    return present + _DEFAULTS[len(fields) :]


JobFields = dict[str, Any]
"""The fields of a stored job by their names."""


class _Decoded(NamedTuple):
    """The fields that are not plain numbers."""

    job: str
    queue: str
    extras: dict[str, Any]
    progress: Progress | None
    reason: str | None
    waiting_for: str | None
    errors: tuple[RunError, ...]


def _decoded(job: JobFields, names: Mapping[int, str]) -> _Decoded:
    return _Decoded(
        names[job["name"]],
        names[job["queue"]],
        unpack_extras(job["extras"]),
        unpack_progress(job["progress"]),
        maybe(job["reason"], text),
        maybe(job["waiting_for"], text),
        unpack_errors(job["errors"]),
    )


def _decoded_apart(job: JobFields, names: Mapping[int, str]) -> tuple[_Decoded, tuple[Unreadable, ...]]:
    """Decode field by field. One that cannot be read has its default, and is reported."""

    def named(number: int) -> str:
        if number not in names:
            raise ValueError(f"the number {number} stands for no text, or for one that is no UTF-8")
        return names[number]

    reader = FieldReader()
    if job["spoilt"] is not None:
        column, problem, raw = _read_spoilt(job["spoilt"])
        reader.note(column, raw, problem)
    decoded = _Decoded(
        reader.read("name", job["name"], named, UNKNOWN),
        reader.read("queue", job["queue"], named, UNKNOWN),
        reader.read("extras", job["extras"], unpack_extras, {}),
        reader.read("progress", job["progress"], unpack_progress, None),
        reader.read("reason", job["reason"], _maybe_text, None),
        reader.read("waiting_for", job["waiting_for"], _maybe_text, None),
        reader.read("errors", job["errors"], unpack_errors, ()),
    )
    return decoded, reader.unreadable


UNKNOWN: Final = "?"
"""In place of the name of a queue or job that cannot be read."""


def _maybe_text(stored: bytes | None) -> str | None:
    return maybe(stored, text)


def shown(stored: bytes) -> str:
    """Return the name of a worker or a queue for display. Bytes that are not UTF-8 are escaped: a worker's name makes no job unreadable."""
    try:
        return text(stored)
    except UnicodeDecodeError:
        return stored.decode(errors="backslashreplace")


def column_of(number: int) -> str:
    """Return the name of the field that a script could not read; 0 stands for the whole record."""
    return FIELDS[number - 1] if 0 < number <= len(FIELDS) else "record"


def _read_spoilt(packed: bytes) -> tuple[str, str, bytes]:
    """Decode the note that unreadable.lua leaves in a job that it has set aside. The note may be damaged too."""
    try:
        number, problem, raw = unpack(packed)
        return column_of(whole(number)), text(problem), octets(raw)
    except Exception:  # msgpack's own errors included
        return "record", "it cannot be read", packed


def _read(job: JobFields, names: Mapping[int, str]) -> tuple[_Decoded, tuple[Unreadable, ...]]:
    if job["spoilt"] is None:
        try:
            return _decoded(job, names), ()
        except Exception:  # RecursionError, OverflowError, KeyError and msgpack's own errors included
            pass
    return _decoded_apart(job, names)


def lease_of(job_id: bytes, fields: list[Any], names: Mapping[int, str], wall: int) -> Lease:
    job: JobFields = dict(zip(FIELDS, _completed(fields), strict=True))
    decoded, unreadable = _read(job, names)
    return Lease(
        envelope=Envelope(
            id=job_id,
            job=decoded.job,
            payload=job["payload"] or b"",
            queue=decoded.queue,
            priority=job["priority"],
            key=job["key"],
            **decoded.extras,
        ),
        epoch=job["epoch"],
        claim=unpack_claim(job["claim"]),
        created_at=job["created"],
        failures=job["failures"],
        crashes=job["crashes"],
        snoozes=job["snoozes"],
        hand_backs=job["hand_backs"],
        parked_for=0.0 if job["parked"] is None else to_seconds(wall - job["parked"]),
        expires_in=None if job["expires"] is None else to_seconds(job["expires"] - wall),
        unreadable=unreadable,
    )


def _record(job_id: bytes, fields: list[Any], names: Mapping[int, str]) -> Record:
    job: JobFields = dict(zip(FIELDS, _completed(fields), strict=True))
    decoded, unreadable = _read(job, names)
    return Record(
        id=job_id,
        job=decoded.job,
        queue=decoded.queue,
        status=BY_CODE[job["status"]],
        priority=job["priority"],
        max_attempts=decoded.extras.get("max_attempts", _PLAIN.max_attempts),
        created_at=instant_of(job["created"]),
        due_at=instant_of(job["created"] if job["due"] is None else job["due"]),
        claimed_at=maybe(job["claimed"], instant_of),
        started_at=maybe(job["started"], instant_of),
        ended_at=maybe(job["ended"], instant_of),
        expires_at=maybe(job["expires"], instant_of),
        failures=job["failures"],
        crashes=job["crashes"],
        snoozes=job["snoozes"],
        hand_backs=job["hand_backs"],
        epoch=job["epoch"],
        worker=maybe(job["worker"], shown),
        progress=decoded.progress,
        result=job["result"],
        payload=job["payload"],
        reason=decoded.reason,
        waiting_for=decoded.waiting_for,
        errors=decoded.errors,
        cancel_requested=job["cancel_requested"] is not None,
        headers=decoded.extras.get("headers", {}),
        unreadable=unreadable,
    )
