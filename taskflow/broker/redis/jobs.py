"""Decodes stored jobs into leases and records. A field that cannot be read gets its default."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.broker.redis.fields import FIELDS
from taskflow.broker.redis.large_payloads import is_reference
from taskflow.broker.redis.packing import unpack, unpack_claim
from taskflow.model import envelope as envelopes
from taskflow.model.envelope import Envelope, Lease, unpack_extras
from taskflow.model.job_schema import BY_NAME
from taskflow.model.progress import unpack_progress
from taskflow.model.record import BY_CODE, CODES, Record, Status, record_of
from taskflow.model.stored_values import FULL_SPEED, FieldReader, maybe_text, octets, text, whole
from taskflow.model.verdict import unpack_errors

_DEFAULTS: Final = tuple(BY_NAME[field].default for field in FIELDS)

StoredJob: Any = msgspec.defstruct("StoredJob", FIELDS)


class Names(dict[int, str]):
    """Maps numbers to the names of queues and jobs."""

    def __missing__(self, number: int) -> str:
        raise ValueError(f"name number {number} has no stored text, or one that is not UTF-8")


class Head(NamedTuple):
    """The first part of a reply from `read`, `page` or `claim`.

    `names`     the names of queues and jobs by number, without those that cannot be read
    `is_armed`  True if the session will get a wake-up for new jobs
    """

    wall: int
    names: Names
    is_armed: bool


def head_of(packed: bytes) -> Head:
    wall, texts, *rest = unpack(packed)
    names = Names()
    for number, stored in zip(texts[::2], texts[1::2], strict=True):
        try:
            names[number] = stored.decode()[2:]
        except UnicodeDecodeError:
            continue
    return Head(int(wall), names, bool(rest and rest[0]))


def records_of(reply: Sequence[bytes]) -> tuple[dict[bytes, Record], Names]:
    """Return the records in a reply, and the names of their queues and jobs."""
    names = head_of(reply[0]).names
    return {reply[i]: _record(reply[i], unpack(reply[i + 1]), names) for i in range(1, len(reply), 2)}, names


def ended_record(job_id: bytes, stored: bytes, names: Names | None) -> Record | None:
    """Decode an ended job's record from its stored form.

    Return None if the record cannot be read or is not kept, or if its payload
    or result is stored separately. The waiter then reads the job itself.
    """
    if names is None or not stored:
        return None
    try:
        fields = succeeded_fields(stored) if stored[0] == CODES[Status.SUCCEEDED] else unpack(stored)
        job = _job(fields)
        is_whole = not any(is_reference(value) for value in (job.payload, job.result) if value)
        return _record(job_id, fields, names) if is_whole and job.fade_at > job.ended_at else None
    except Exception:  # decoders may raise anything
        return None


_RAN: Final = struct.Struct(">xI24xQ8xH")
_WAITED: Final = struct.Struct(">xbIIQ6xQH")
_ENDED: Final = struct.Struct(">QQQI")
"""The fixed layout of a job that has succeeded. `_RAN` holds the epoch, the time of the claim, and the length of the worker's name.
`_WAITED` holds the priority, queue, name, due time, creation time, and length of the extras. `_ENDED` holds when the job
ended, how long it ran, how long it is kept, and the length of the result."""


def succeeded_fields(stored: bytes) -> list[Any]:
    """Convert a succeeded job from the fixed layout to the equivalent array of fields."""
    epoch, claimed, worker_bytes = _RAN.unpack_from(stored)
    at = _RAN.size + worker_bytes
    worker = stored[_RAN.size : at]
    priority, queue, name, due, created, extras_bytes = _WAITED.unpack_from(stored, at)
    at += _WAITED.size
    ended, ran_for, keep_for, result_bytes = _ENDED.unpack_from(stored, at + extras_bytes)
    job = dict.fromkeys(FIELDS, False) | {
        "status": CODES[Status.SUCCEEDED],
        "queue": queue,
        "name": name,
        "priority": priority,
        "created_at": created,
        "due_at": due != created and due,
        "extras": stored[at : at + extras_bytes] or False,
        "epoch": epoch,
        "claimed_at": claimed,
        "worker": worker,
        "started_at": ended - ran_for,
        "ended_at": ended,
        "fade_at": ended + keep_for,
        "result": stored[-result_bytes:] if result_bytes else b"",
    }
    return list(job.values())


def _job(fields: list[Any]) -> Any:
    """Return a StoredJob with these fields, and with defaults for those that are absent."""
    present = [default if field is False else field for field, default in zip(fields, _DEFAULTS, strict=False)]
    return StoredJob(*present, *_DEFAULTS[len(fields) :])


UNKNOWN: Final = "?"
"""Shown in place of a queue name or job name that cannot be read."""


def shown(stored: bytes) -> str:
    """Return the name of a worker or queue for display. Invalid UTF-8 is escaped, so that a bad worker name does
    not make a job unreadable."""
    try:
        return text(stored)
    except UnicodeDecodeError:
        return stored.decode(errors="backslashreplace")


def column_of(number: int) -> str:
    """Return the name of the field that a script reported by this number as unreadable, or "record" if the number is 0 or unknown."""
    return FIELDS[number - 1] if 0 < number <= len(FIELDS) else "record"


def _read_spoilt(packed: bytes) -> tuple[str, str, bytes]:
    """Decode the `spoilt` field, in which unreadable.lua says why it has set a job aside. This field may be damaged too."""
    try:
        number, problem, raw = unpack(packed)
        return column_of(whole(number)), text(problem), octets(raw)
    except Exception:  # includes msgpack's own errors
        return "record", "it cannot be read", packed


def _reader_of(job: Any) -> FieldReader:
    """Return a reader for the job's fields. If the job was set aside because of a field, that field is already noted as unreadable."""
    reader = FieldReader()
    if job.spoilt is not None:
        column, problem, raw = _read_spoilt(job.spoilt)
        reader.note(column, raw, problem)
    return reader


def lease_of(job_id: bytes, fields: list[Any], names: Names, wall: int) -> Lease:
    job = _job(fields)
    if job.spoilt is None:
        try:
            return _lease(job_id, job, names, wall, FULL_SPEED)
        except Exception:  # includes RecursionError, OverflowError and msgpack's own errors
            pass
    return _lease(job_id, job, names, wall, _reader_of(job))


def _lease(job_id: bytes, job: Any, names: Names, wall: int, reader: FieldReader) -> Lease:
    read = reader.read
    no_extras: dict[str, Any] = {}
    envelope = Envelope(
        id=job_id,
        job=read("name", job.name, names.__getitem__, UNKNOWN),
        queue=read("queue", job.queue, names.__getitem__, UNKNOWN),
        payload=job.payload or b"",
        priority=job.priority,
        key=job.key,
        **read("extras", job.extras, unpack_extras, no_extras),
    )
    for column, decode in _NOT_LEASED:
        read(column, getattr(job, column), decode, None)
    claim = unpack_claim(job.claim)
    poison = read("reason", job.reason, maybe_text, None) if job.is_poison else None
    return envelopes.lease_of(job, envelope, epoch=job.epoch, claim=claim, now=wall, unreadable=reader.unreadable, poison=poison)


_NOT_LEASED: Final[Sequence[tuple[str, Callable[[Any], Any]]]] = (
    ("progress", unpack_progress),
    ("reason", maybe_text),
    ("waiting_for", maybe_text),
    ("errors", unpack_errors),
)
"""Fields that are not part of a lease but are decoded with it, because a job with a damaged field must not run."""


def _record(job_id: bytes, fields: list[Any], names: Names) -> Record:
    job = _job(fields)
    job.due_at = job.due_at or job.created_at
    job.worker = None if job.worker is None else shown(job.worker)
    if job.spoilt is None:
        try:
            return _record_of(job_id, job, names, FULL_SPEED)
        except Exception:  # as above
            pass
    return _record_of(job_id, job, names, _reader_of(job))


def _record_of(job_id: bytes, job: Any, names: Names, reader: FieldReader) -> Record:
    no_extras: dict[str, Any] = {}
    return record_of(
        job,
        reader,
        id=job_id,
        name=reader.read("name", job.name, names.__getitem__, UNKNOWN),
        queue=reader.read("queue", job.queue, names.__getitem__, UNKNOWN),
        status=BY_CODE[job.status],
        extras=reader.read("extras", job.extras, unpack_extras, no_extras),
    )
