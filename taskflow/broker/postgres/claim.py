"""Leases from the rows of claim(): see claim.sql."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskflow.broker.postgres.rows import BareRow, Row, extras_of, name, reader_of
from taskflow.model.clock import to_seconds
from taskflow.model.envelope import DEFAULT_QUEUE, ClaimId, Envelope, Lease, unpack_extras


def leases_of(rows: Sequence[Row], session: bytes, request: int) -> list[Lease]:
    """In the order of their numbers."""
    try:
        leases = [_sound_lease(row, session, request) for row in rows]
    except Exception:  # whatever a decoder raises
        leases = [_lease_of(row, session, request) for row in rows]
    leases.sort(key=_number)
    return leases


def _lease_of(row: Row, session: bytes, request: int) -> Lease:
    if isinstance(row, BareRow):
        return _spoilt_lease(row, session, request)
    try:
        return _sound_lease(row, session, request)
    except Exception:  # whatever a decoder raises
        return _spoilt_lease(row, session, request)


def _sound_lease(row: Row, session: bytes, request: int) -> Lease:
    (
        job_id, number, epoch, created_at, failures, crashes, snoozes, hand_backs, parked_for, priority, queue, job, key, payload, extras,
        expires_in, unreadable,
    ) = row  # fmt: skip
    if unreadable is not None:
        raise ValueError(unreadable)
    return Lease(
        envelope=Envelope(id=job_id, job=job, payload=payload or b"", queue=queue, priority=priority, key=key, **unpack_extras(extras)),
        epoch=epoch,
        claim=ClaimId(session, request, number),
        created_at=created_at,
        failures=failures,
        crashes=crashes,
        snoozes=snoozes,
        hand_backs=hand_backs,
        parked_for=0.0 if parked_for is None else to_seconds(parked_for),
        expires_in=None if expires_in is None else to_seconds(expires_in),
    )


def _spoilt_lease(row: Row, session: bytes, request: int) -> Lease:
    """Return a lease with the fields that can be read.

    Its worker ends the job as FAILED. The columns' domains keep ids and counters sound.
    """
    reader = reader_of(row)
    extras: dict[str, Any] = reader.read("extras", row["extras"], extras_of, {})
    envelope = Envelope(
        id=row["id"],
        job=reader.read("job", row["job"], name, ""),
        payload=row["payload"] or b"",
        queue=reader.read("queue", row["queue"], name, DEFAULT_QUEUE),
        priority=row["priority"],
        key=row["key"],
        **extras,
    )
    return Lease(
        envelope=envelope,
        epoch=row["epoch"],
        claim=ClaimId(session, request, row["number"]),
        created_at=row["created_at"],
        failures=row["failures"],
        crashes=row["crashes"],
        snoozes=row["snoozes"],
        hand_backs=row["hand_backs"],
        parked_for=to_seconds(row["parked_for"] or 0),
        expires_in=None if row["expires_in"] is None else to_seconds(row["expires_in"]),
        unreadable=reader.unreadable,
    )


def _number(lease: Lease) -> int:
    return lease.claim.number
