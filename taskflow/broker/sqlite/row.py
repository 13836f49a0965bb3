"""A job as a row of the table, and what of it goes out: records and leases."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Final

import msgpack
import msgspec

from taskflow.model.clock import instant_of, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.progress import Progress, unpack_progress
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.stored import FieldReader, Unreadable, maybe, octets, text, unpacked
from taskflow.model.verdict import Settlement, unpack_errors

_CLAIM_TAIL: Final = struct.Struct(">QI")
_CLAIM_HEAD: Final = struct.Struct(">Q")
_CLAIM_NUMBER: Final = struct.Struct(">I")
_EPOCH: Final = struct.Struct(">Q")
_ID_BYTES: Final = 16
CLAIM_BYTES: Final = _ID_BYTES + _CLAIM_TAIL.size

_CHANGING: Final = (
    "code", "due_at", "expires_at", "awaits", "joins", "behind", "epoch", "failures", "crashes", "snoozes", "hand_backs", "claim",
    "started_at", "worker", "progress", "settled", "parked_at", "cancel_requested", "reason", "waiting_for", "is_poison", "ended_at",
    "fade_at", "errors", "result", "code", "seq",
)  # fmt: skip


class JobRow(msgspec.Struct):
    """One row, in the order of the table's columns; `schema/` says what they hold. Changed here, then saved."""

    seq: int
    id: bytes
    code: int | None
    queue: int
    name: int
    priority: int
    created_at: int
    due_at: int
    expires_at: int | None = None
    key: bytes | None = None
    extras: bytes | None = None
    awaits: int = 0
    joins: bytes | None = None
    behind: bytes | None = None
    epoch: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    claim: bytes | None = None
    claimed_at: int | None = None
    claimed_steady: int = 0
    started_at: int | None = None
    worker: str | bytes | None = None
    progress: bytes | None = None
    settled: bytes | None = None
    parked_at: int | None = None
    cancel_requested: str | bytes | None = None
    reason: str | bytes | None = None
    waiting_for: str | bytes | None = None
    is_poison: int = 0
    ended_at: int | None = None
    fade_at: int | None = None
    spoilt: bytes | None = None
    errors: bytes | None = None
    result: bytes | None = None
    payload: bytes | None = None

    @property
    def status(self) -> Status | None:
        """None for what was dropped."""
        return None if self.code is None else BY_CODE[self.code]

    def is_kept(self, now: int) -> bool:
        """While an ended job is kept, `fade_at` says until when."""
        return self.code is not None and (self.ended_at is None or (self.fade_at or 0) > now)

    def joined_ids(self) -> list[bytes]:
        return slices(self.joins, _ID_BYTES)

    def make_fresh(self, now: int) -> None:
        """As if it had just been enqueued; what happened to it before stays in its errors."""
        self.due_at = now
        self.failures = self.crashes = self.snoozes = self.hand_backs = 0
        self.awaits = self.is_poison = 0
        self.expires_at = self.ended_at = self.fade_at = self.parked_at = self.started_at = None
        self.cancel_requested = self.reason = self.progress = self.worker = None


COLUMNS: Final = JobRow.__struct_fields__

changing_columns: Final = attrgetter(*_CHANGING)
"""What `save_job` takes."""

columns_of_run: Final = attrgetter(
    "seq", "code", "due_at", "failures", "crashes", "snoozes", "hand_backs", "started_at", "settled", "parked_at", "errors", "reason",
    "waiting_for", "is_poison", "ended_at", "fade_at",
)  # fmt: skip
"""What `save_runs` takes."""

all_columns: Final = attrgetter(*COLUMNS[1:])
"""What `add_job` takes."""

LEFT_ALONE: Final = frozenset({"seq", "extras", "result", "payload"})
"""Columns that no statement decides by: an unsound value stays where it is."""

mended_columns: Final = attrgetter(*(column for column in COLUMNS if column not in LEFT_ALONE), "seq")
"""What `mend_job` takes."""


def record_of(job: JobRow, queue: str, name: str | Unreadable) -> Record:
    status = job.status
    assert status is not None
    reader = _Opaque(job)
    extras = reader.extras()
    return Record(
        id=job.id,
        job=reader.name(name),
        queue=queue,
        status=status,
        priority=job.priority,
        max_attempts=extras.get("max_attempts", _PLAIN.max_attempts),
        created_at=instant_of(job.created_at),
        due_at=instant_of(job.due_at),
        claimed_at=None if job.claimed_at is None else instant_of(job.claimed_at),
        started_at=None if job.started_at is None else instant_of(job.started_at),
        ended_at=None if job.ended_at is None else instant_of(job.ended_at),
        expires_at=None if job.expires_at is None else instant_of(job.expires_at),
        failures=job.failures,
        crashes=job.crashes,
        snoozes=job.snoozes,
        hand_backs=job.hand_backs,
        epoch=job.epoch,
        worker=text_of(job.worker),
        progress=reader.read("progress", job.progress, unpack_progress, None),
        result=reader.read("result", job.result, _maybe_octets, None),
        payload=reader.read("payload", job.payload, _maybe_octets, None),
        reason=text_of(job.reason),
        waiting_for=text_of(job.waiting_for),
        errors=reader.read("errors", job.errors, unpack_errors, ()),
        cancel_requested=job.cancel_requested is not None,
        headers=extras.get("headers", {}),
        unreadable=reader.unreadable,
    )


_PLAIN: Final = Envelope(id=b"", job="", payload=b"")


def lease_of(job: JobRow, queue: str, name: str | Unreadable, claim: ClaimId, now: int) -> Lease:
    """The lease of that claim, as it was given or is given now. `epoch` is the job's own."""
    reader = _Opaque(job)
    return Lease(
        envelope=Envelope(
            id=job.id,
            job=reader.name(name),
            queue=queue,
            payload=reader.read("payload", job.payload, octets, b""),
            priority=job.priority,
            key=job.key,
            **reader.extras(),
        ),
        epoch=job.epoch,
        claim=claim,
        created_at=job.created_at,
        failures=job.failures,
        crashes=job.crashes,
        snoozes=job.snoozes,
        hand_backs=job.hand_backs,
        parked_for=parked_for(job.parked_at, now),
        expires_in=expires_in(job.expires_at, now),
        unreadable=reader.unreadable,
    )


class _Opaque(FieldReader):
    """Reads what no statement decides by. What was found before, when the row was mended, comes first."""

    def __init__(self, job: JobRow) -> None:
        super().__init__()
        self._job = job
        if job.spoilt is not None:
            nothing: tuple[Unreadable, ...] = ()
            for found in self.read("spoilt", job.spoilt, unpack_spoilt, nothing):
                self.note(found.column, found.raw, found.problem)

    def extras(self) -> dict[str, Any]:
        return {} if self._job.extras is None else self.read("extras", self._job.extras, unpack_extras, {})

    def name(self, name: str | Unreadable) -> str:
        if isinstance(name, str):
            return name
        self.note(name.column, name.raw, name.problem)
        return ""

    def note(self, column: str, stored: Any, problem: str) -> None:
        if column not in {found.column for found in self.unreadable}:
            super().note(column, stored, problem)


def _maybe_octets(stored: Any) -> bytes | None:
    return maybe(stored, octets)


def pack_spoilt(found: Iterable[Unreadable]) -> bytes:
    packed = msgpack.packb([[each.column, each.problem, each.raw] for each in found], unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


def unpack_spoilt(packed: Any) -> tuple[Unreadable, ...]:
    return tuple(Unreadable(text(column), text(problem), octets(raw)) for column, problem, raw in unpacked(packed))


def parked_for(parked_at: int | None, now: int) -> float:
    return 0.0 if parked_at is None else to_seconds(now - parked_at)


def expires_in(expires_at: int | None, now: int) -> float | None:
    return None if expires_at is None else to_seconds(expires_at - now)


# --- fences as bytes ---------------------------------------------------------------------------------------


def pack_claim(claim: ClaimId) -> bytes:
    """28 bytes that sort as the claim does: session, then request, then number."""
    return claim.session + _CLAIM_TAIL.pack(claim.request, claim.number)


def pack_claims(session: bytes, request: int, count: int) -> list[bytes]:
    """The first so many of a request, packed."""
    head, pack = session + _CLAIM_HEAD.pack(request), _CLAIM_NUMBER.pack
    return [head + pack(number) for number in range(count)]


def unpack_claim(packed: bytes) -> ClaimId:
    request, number = _CLAIM_TAIL.unpack(packed[-_CLAIM_TAIL.size :])
    return ClaimId(packed[: -_CLAIM_TAIL.size], request, number)


def claims_of(session: bytes, request: int | None = None) -> tuple[bytes, bytes]:
    """The least and the greatest claim that the session can have, or can have by that request."""
    first, last = (0, 0xFFFF_FFFF_FFFF_FFFF) if request is None else (request, request)
    return session + _CLAIM_TAIL.pack(first, 0), session + _CLAIM_TAIL.pack(last, 0xFFFF_FFFF)


def is_possible(settlement: Settlement) -> bool:
    """Return False if no store can have given out this fence."""
    session, request, number = settlement.claim
    return len(session) == _ID_BYTES and 0 <= settlement.epoch < 1 << 53 and 0 <= request < 1 << 63 and 0 <= number < 1 << 32


def slices(joined: bytes | None, size: int) -> list[bytes]:
    """Values of one size out of their concatenation."""
    joined = joined or b""
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def pack_fence(epoch: int, claim: bytes) -> bytes:
    return claim + _EPOCH.pack(epoch)


# --- progress ---------------------------------------------------------------------------------------------------


def pack_progress(progress: Progress | None) -> bytes | None:
    if progress is None:
        return None
    packed = msgpack.packb([progress.fraction, progress.note], unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


# --- text ---------------------------------------------------------------------------------------------------------


def storable(told: str) -> str | bytes:
    """SQLite's text is UTF-8: what has no such form (a lone surrogate in an exception's message) is kept as bytes."""
    try:
        told.encode()
    except UnicodeEncodeError:
        return told.encode(errors="surrogatepass")
    return told


def text_of(stored: str | bytes | None) -> str | None:
    return stored.decode(errors="surrogatepass") if isinstance(stored, bytes) else stored
