"""A job as the memory broker stores it."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec

from taskflow.model.envelope import ClaimId, Envelope, Lease, lease_of
from taskflow.model.job_schema import AS_SENT, JobState
from taskflow.model.progress import Progress
from taskflow.model.record import Record, Status, record_of
from taskflow.model.session import Session
from taskflow.model.stored_values import DECODED
from taskflow.model.transitions import due_at, expires_at
from taskflow.model.verdict import RunError


class Fence(msgspec.Struct, frozen=True, gc=False):
    """Identifies one lease, even if the store has lost its latest changes and assigns the same epochs again."""

    epoch: int
    claim: ClaimId


Entry = tuple[int, int, int, bytes]
"""A job's place among the ready jobs of its queue, followed by its id."""


_as_sent: Final = attrgetter(*AS_SENT)


class StoredJob(JobState, gc=False, eq=False, kw_only=True):
    """A job's envelope and state. `entry` is its latest entry among the ready jobs.

    The garbage collector skips these objects, which are never part of a cycle. Otherwise it would scan all stored jobs again and again.
    """

    envelope: Envelope
    queue: str
    payload: bytes | None
    joins: tuple[bytes, ...]
    status: Status | None = None
    entry: Entry | None = None
    claim: ClaimId | None = None
    settled: Fence | None = None
    errors: tuple[RunError, ...] = ()
    progress: Progress | None = None
    worker: str | None = None
    cancel_requested: str | None = None
    result: bytes | None = None
    reason: str | None = None
    waiting_for: str | None = None
    fade_at: int | None = None

    @staticmethod
    def of(envelope: Envelope, seq: int, now: int) -> StoredJob:
        return StoredJob(
            envelope=envelope,
            queue=envelope.queue,
            seq=seq,
            created_at=now,
            due_at=due_at(envelope, now),
            expires_at=expires_at(envelope, now),
            joins=envelope.joins,
            **dict(zip(AS_SENT, _as_sent(envelope), strict=True)),
        )

    @property
    def place(self) -> tuple[int, int, int]:
        """Return the job's place among the ready jobs of its queue. The job with the smallest place is claimed first."""
        return (-self.priority, self.due_at, self.seq)

    def is_expired(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def is_kept(self, now: int) -> bool:
        return self.status is not None and (self.ended_at is None or (self.fade_at or 0) > now)

    def lease_to(self, session: Session, claim: ClaimId, now: int, steady: int) -> None:
        self.epoch += 1
        self.claim = claim
        self.claimed_at, self.claimed_steady = now, steady
        self.started_at = self.progress = None
        self.waiting_for = None
        self.worker = session.name

    def to_lease(self, now: int) -> Lease:
        assert self.claim is not None
        poison = self.reason if self.is_poison else None
        return lease_of(self, self.envelope, epoch=self.epoch, claim=self.claim, now=now, poison=poison)

    def to_record(self) -> Record:
        assert self.status is not None
        envelope = self.envelope
        return record_of(
            self, DECODED, id=self.id, name=envelope.job, queue=self.queue, status=self.status, extras=msgspec.structs.asdict(envelope)
        )
