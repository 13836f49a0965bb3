"""Represents a job as a row of the table, and makes records and leases from rows."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Final

from taskflow.model import envelope as envelopes, record
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.ids import ID_BYTES
from taskflow.model.job_schema import AS_SENT, JobState
from taskflow.model.progress import Progress
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.stored_values import FieldReader, Unreadable, octets, packed, text, unpacked
from taskflow.model.verdict import Settlement

_CLAIM_TAIL: Final = struct.Struct(">QI")
_CLAIM_HEAD: Final = struct.Struct(">Q")
_CLAIM_NUMBER: Final = struct.Struct(">I")
_EPOCH: Final = struct.Struct(">Q")
CLAIM_BYTES: Final = ID_BYTES + _CLAIM_TAIL.size


class JobRow(JobState):
    """A row of the jobs table, with its columns in the order of `COLUMNS`;
    `schema/` describes them. A row is changed in memory and then saved."""

    code: int | None = None
    queue: int = 0
    name: int = 0
    extras: bytes | None = None
    joins: bytes | None = None
    claim: bytes | None = None
    worker: str | bytes | None = None
    progress: bytes | None = None
    settled: bytes | None = None
    cancel_requested: str | bytes | None = None
    reason: str | bytes | None = None
    waiting_for: str | bytes | None = None
    fade_at: int | None = None
    spoilt: bytes | None = None
    errors: bytes | None = None
    result: bytes | None = None
    payload: bytes | None = None

    @property
    def status(self) -> Status | None:
        """The job's status, or None for a dropped job."""
        return None if self.code is None else BY_CODE[self.code]

    def is_kept(self, now: int) -> bool:
        """Return True for a live job, and for an ended one until `fade_at`."""
        return self.code is not None and (self.ended_at is None or (self.fade_at or 0) > now)

    def joined_ids(self) -> list[bytes]:
        return slices(self.joins, ID_BYTES)


COLUMNS: Final = JobRow.__struct_fields__

_FIXED: Final = frozenset({"seq", "id", "queue", "name", "priority", "created_at", "key", "extras", "spoilt", "result", "payload"})
"""Columns that `save_job` does not change, or treats separately."""

LEFT_ALONE: Final = frozenset({"seq", "extras", "result", "payload"})
"""Columns that no statement depends on. An unsound value in one of them is left where it is."""

CHANGING: Final = tuple(column for column in COLUMNS if column not in _FIXED)
REPAIRED: Final = tuple(column for column in COLUMNS if column not in LEFT_ALONE)
OF_RUN: Final = (
    "code", "due_at", "failures", "crashes", "snoozes", "hand_backs", "started_at", "settled", "parked_at", "errors", "reason",
    "waiting_for", "is_poison", "ended_at", "fade_at", "cause",
)  # fmt: skip
TIES: Final = ("key", "awaits")
"""The fields that tie a new job to others. Jobs without them are added as a batch, with the columns of `SENT`."""

SENT_AS_IS: Final = tuple(field for field in AS_SENT if field not in TIES)
SENT: Final = ("code", "queue", "name", "created_at", "due_at", "expires_at", "extras", "joins", *SENT_AS_IS)

changing_columns: Final = attrgetter(*CHANGING, "result", "code", "seq")
"""Returns the parameters of `save_job`."""

columns_of_run: Final = attrgetter("seq", *OF_RUN)
"""Returns the parameters of `save_runs`."""

all_columns: Final = attrgetter(*COLUMNS[1:])
"""Returns the parameters of `add_job`."""

repaired_columns: Final = attrgetter(*REPAIRED, "seq")
"""Returns the parameters of `repair_job`."""


def record_of(job: JobRow, queue: str, name: str | Unreadable) -> Record:
    status = job.status
    assert status is not None
    reader = _Opaque(job)
    return record.record_of(job, reader, id=job.id, name=reader.name(name), queue=queue, status=status, extras=reader.extras())


def lease_of(job: JobRow, queue: str, name: str | Unreadable, claim: ClaimId, now: int) -> Lease:
    """Return the lease of a job for this claim, which may be new or repeated. Its epoch is the job's current one."""
    reader = _Opaque(job)
    payload = reader.read("payload", job.payload, octets, b"")
    envelope = Envelope(
        id=job.id, job=reader.name(name), queue=queue, payload=payload, priority=job.priority, key=job.key, **reader.extras()
    )
    poison = text_of(job.reason) if job.is_poison else None
    return envelopes.lease_of(job, envelope, epoch=job.epoch, claim=claim, now=now, unreadable=reader.unreadable, poison=poison)


class _Opaque(FieldReader):
    """Reads the fields on which no statement depends. Problems found earlier, when the row was repaired, are listed first."""

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


def pack_spoilt(found: Iterable[Unreadable]) -> bytes:
    return packed([[each.column, each.problem, each.raw] for each in found])


def unpack_spoilt(stored: Any) -> tuple[Unreadable, ...]:
    return tuple(Unreadable(text(column), text(problem), octets(raw)) for column, problem, raw in unpacked(stored))


# --- fences as bytes ---------------------------------------------------------------------------------------


def pack_claim(claim: ClaimId) -> bytes:
    """Pack a claim into 28 bytes that sort like claims: by session, then request, then number."""
    return claim.session + _CLAIM_TAIL.pack(claim.request, claim.number)


def pack_claims(session: bytes, request: int, count: int) -> list[bytes]:
    """Pack the first `count` claims of a request."""
    head, pack = session + _CLAIM_HEAD.pack(request), _CLAIM_NUMBER.pack
    return [head + pack(number) for number in range(count)]


def unpack_claim(packed: bytes) -> ClaimId:
    request, number = _CLAIM_TAIL.unpack(packed[-_CLAIM_TAIL.size :])
    return ClaimId(packed[: -_CLAIM_TAIL.size], request, number)


def claims_of(session: bytes, request: int | None = None) -> tuple[bytes, bytes]:
    """Return the least and the greatest claim that the session can have, for all its requests or for one."""
    first, last = (0, 0xFFFF_FFFF_FFFF_FFFF) if request is None else (request, request)
    return session + _CLAIM_TAIL.pack(first, 0), session + _CLAIM_TAIL.pack(last, 0xFFFF_FFFF)


def is_possible(settlement: Settlement) -> bool:
    """Return False if no store could have issued this fence."""
    session, request, number = settlement.claim
    return len(session) == ID_BYTES and 0 <= settlement.epoch < _CALLERS and 0 <= request < 1 << 63 and 0 <= number < 1 << 32


def slices(joined: bytes | None, size: int) -> list[bytes]:
    """Split a concatenation of values that have `size` bytes each."""
    joined = joined or b""
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def pack_fence(epoch: int, claim: bytes, *, is_callers: bool = False) -> bytes:
    """Return the fence that a settlement stores. It differs if a caller's transaction has settled the run."""
    return claim + _EPOCH.pack(epoch | _CALLERS if is_callers else epoch)


_CALLERS: Final = 1 << 63
"""A bit that no epoch has."""


# --- progress ---------------------------------------------------------------------------------------------------


def pack_progress(progress: Progress | None) -> bytes | None:
    return None if progress is None else packed([progress.fraction, progress.note])


# --- text ---------------------------------------------------------------------------------------------------------


def storable(value: str) -> str | bytes:
    """Return text that SQLite can store. Text without a UTF-8 form (a lone surrogate in an exception's message) becomes bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="surrogatepass")
    return value


def text_of(stored: str | bytes | None) -> str | None:
    return stored.decode(errors="surrogatepass") if isinstance(stored, bytes) else stored
