"""Decodes stored jobs as leases and records. A field that cannot be read gets its default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.broker.redis.fields import FIELDS
from taskflow.broker.redis.packing import unpack, unpack_claim
from taskflow.model import envelope as envelopes
from taskflow.model.envelope import Envelope, Lease, unpack_extras
from taskflow.model.job_schema import BY_NAME
from taskflow.model.progress import unpack_progress
from taskflow.model.record import BY_CODE, Record, record_of
from taskflow.model.stored import FULL_SPEED, FieldReader, maybe_text, octets, text, whole
from taskflow.model.verdict import unpack_errors

_DEFAULTS: Final = tuple(BY_NAME[field].default for field in FIELDS)

StoredJob: Any = msgspec.defstruct("StoredJob", FIELDS)


class Names(dict[int, str]):
    """The names of queues and jobs by their numbers."""

    def __missing__(self, number: int) -> str:
        raise ValueError(f"the number {number} stands for no text, or for one that is not UTF-8")


class Head(NamedTuple):
    """The first part of the replies of `read`, `browse` and `claim`.

    `names`     the names of queues and jobs by number, without those that cannot be read
    `is_armed`  True if the session will get a wake-up for new jobs
    """

    wall: int
    names: Names
    is_armed: bool


def head_of(packed: bytes) -> Head:
    wall, texts, *rest = unpack(packed)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    try:
        names = Names({number: text.decode()[2:] for number, text in pairs})
    except UnicodeDecodeError:
        names = Names({number: text.decode()[2:] for number, text in zip(texts[::2], texts[1::2], strict=True) if _is_utf8(text)})
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


def _job(fields: list[Any]) -> Any:
    """Return the fields by name, with defaults in place of absent ones."""
    present = [default if field is False else field for field, default in zip(fields, _DEFAULTS, strict=False)]
    return StoredJob(*present, *_DEFAULTS[len(fields) :])


UNKNOWN: Final = "?"
"""Replaces the name of a queue or job that cannot be read."""


def shown(stored: bytes) -> str:
    """Return the name of a worker or a queue for display. Bytes that are not UTF-8 are escaped: a bad worker's name makes no job
    unreadable."""
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
    except Exception:  # includes msgpack's own errors
        return "record", "it cannot be read", packed


def _reader_of(job: Any) -> FieldReader:
    """Return a reader that reports the field for which the job was set aside."""
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
    return envelopes.lease_of(job, envelope, epoch=job.epoch, claim=claim, now=wall, unreadable=reader.unreadable)


_NOT_LEASED: Final[Sequence[tuple[str, Callable[[Any], Any]]]] = (
    ("progress", unpack_progress),
    ("reason", maybe_text),
    ("waiting_for", maybe_text),
    ("errors", unpack_errors),
)
"""Fields that a lease does not contain, but that are read with it: a job with a damaged one must not run."""


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
