"""Decodes the rows of claim() into leases: see claim.sql."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from taskflow.broker.postgres.rows import BareRow, Row, extras_of, fields_of, name, reader_of
from taskflow.model.envelope import ClaimId, Envelope, Lease, lease_of, unpack_extras
from taskflow.model.job_schema import DEFAULT_QUEUE


def leases_of(rows: Sequence[Row], session: bytes, request: int) -> list[Lease]:
    """Return the leases, sorted by their number within the claim."""
    try:
        leases = [_sound_lease(row, session, request) for row in rows]
    except Exception:  # decoders may raise anything
        leases = [_lease_of(row, session, request) for row in rows]
    leases.sort(key=attrgetter("claim.number"))
    return leases


def _lease_of(row: Row, session: bytes, request: int) -> Lease:
    if not isinstance(row, BareRow):
        with contextlib.suppress(Exception):  # decoders may raise anything
            return _sound_lease(row, session, request)
    return _spoilt_lease(row, session, request)


_ClaimedRow: Any = msgspec.defstruct(
    "_ClaimedRow",
    (
        "id", "number", "epoch", "created_at", "failures", "crashes", "snoozes", "hand_backs", "parked_at", "priority", "queue", "job",
        "key", "payload", "extras", "expires_at", "unreadable",
    ),
)  # fmt: skip


def _sound_lease(row: Row, session: bytes, request: int) -> Lease:
    job = _ClaimedRow(*row)
    if job.unreadable is not None:
        raise ValueError(job.unreadable)
    extras = unpack_extras(job.extras)
    envelope = Envelope(id=job.id, job=job.job, payload=job.payload or b"", queue=job.queue, priority=job.priority, key=job.key, **extras)
    return lease_of(job, envelope, epoch=job.epoch, claim=ClaimId(session, request, job.number), now=0)


_POISON: Final = "poison\t"
"""Begins the `unreadable` column of a job that is poison; the reason follows in hexadecimal."""


def _spoilt_lease(row: Row, session: bytes, request: int) -> Lease:
    """Decode a row field by field, and return a lease with the fields that can be read.

    If any field is unreadable, the worker ends the job as FAILED. Ids and counters are always sound: their columns' domains check them.
    """
    job, poison = fields_of(_ClaimedRow, row), None
    if (job.unreadable or "").startswith(_POISON):
        poison = bytes.fromhex(job.unreadable.removeprefix(_POISON)).decode(errors="replace")
        row = dict(row.items()) | {"unreadable": None}
    reader = reader_of(row)
    extras: dict[str, Any] = reader.read("extras", job.extras, extras_of, {})
    envelope = Envelope(
        id=job.id,
        job=reader.read("job", job.job, name, ""),
        payload=job.payload or b"",
        queue=reader.read("queue", job.queue, name, DEFAULT_QUEUE),
        priority=job.priority,
        key=job.key,
        **extras,
    )
    claim = ClaimId(session, request, job.number)
    return lease_of(job, envelope, epoch=job.epoch, claim=claim, now=0, unreadable=reader.unreadable, poison=poison)
