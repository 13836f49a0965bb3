"""A job as the memory broker keeps it."""

from __future__ import annotations

import msgspec

from taskflow.model.clock import instant_of, to_microseconds
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.progress import Progress
from taskflow.model.record import Record, Status
from taskflow.model.session import Session
from taskflow.model.verdict import RunError


class Fence(msgspec.Struct, frozen=True, gc=False):
    """Tells one lease from every other, also after the store has lost its tail and counts epochs again."""

    epoch: int
    claim: ClaimId


Entry = tuple[int, int, int, bytes]
"""A job's place among the ready jobs of its queue, and its id."""


class StoredJob(msgspec.Struct, gc=False, eq=False):
    """One envelope and all that became of it. Instants are microseconds since 1970. `entry` is the last one of it among the ready jobs.

    The collector does not look at it: it would go through all that is stored, again and again. Nothing that a job holds leads back to it.
    """

    envelope: Envelope
    id: bytes
    queue: str
    seq: int
    created_at: int
    due_at: int
    expires_at: int | None
    payload: bytes | None
    awaits: int
    joins: tuple[bytes, ...]
    status: Status | None = None
    entry: Entry | None = None
    behind: bytes | None = None
    epoch: int = 0
    claim: ClaimId | None = None
    claimed_at: int | None = None
    claimed_steady: int = 0
    started_at: int | None = None
    settled: Fence | None = None
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    parked_at: int | None = None
    errors: tuple[RunError, ...] = ()
    progress: Progress | None = None
    worker: str | None = None
    cancel_requested: str | None = None
    result: bytes | None = None
    reason: str | None = None
    waiting_for: str | None = None
    is_poison: bool = False
    ended_at: int | None = None
    keep_until: int = 0

    @staticmethod
    def of(envelope: Envelope, seq: int, now: int) -> StoredJob:
        return StoredJob(
            envelope,
            envelope.id,
            envelope.queue,
            seq,
            now,
            max(now, envelope.at) if envelope.at is not None else now + to_microseconds(envelope.after),
            None if envelope.expires is None else now + to_microseconds(envelope.expires),
            envelope.payload,
            envelope.awaits,
            envelope.joins,
        )

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands among the ready jobs of its queue: the least is claimed first."""
        return (-self.envelope.priority, self.due_at, self.seq)

    def is_expired(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def is_kept(self, now: int) -> bool:
        return self.status is not None and (self.ended_at is None or self.keep_until > now)

    def lease_to(self, session: Session, claim: ClaimId, now: int, steady: int) -> None:
        self.epoch += 1
        self.claim = claim
        self.claimed_at, self.claimed_steady = now, steady
        self.started_at = self.progress = None
        self.waiting_for = None
        self.worker = session.name

    def make_fresh(self, now: int) -> None:
        """As if it had just been enqueued; what happened to it before stays in its errors."""
        self.due_at = now
        self.failures = self.crashes = self.snoozes = self.hand_backs = 0
        self.awaits = 0
        self.expires_at = self.ended_at = self.parked_at = self.started_at = None
        self.cancel_requested = self.reason = self.progress = self.worker = None
        self.is_poison = False

    def to_lease(self, now: int) -> Lease:
        assert self.claim is not None
        return Lease(
            envelope=self.envelope,
            epoch=self.epoch,
            claim=self.claim,
            created_at=self.created_at,
            failures=self.failures,
            crashes=self.crashes,
            snoozes=self.snoozes,
            hand_backs=self.hand_backs,
            parked_for=0.0 if self.parked_at is None else (now - self.parked_at) / 1_000_000,
            expires_in=None if self.expires_at is None else (self.expires_at - now) / 1_000_000,
        )

    def to_record(self) -> Record:
        assert self.status is not None
        envelope = self.envelope
        return Record(
            id=envelope.id,
            job=envelope.job,
            queue=envelope.queue,
            status=self.status,
            priority=envelope.priority,
            max_attempts=envelope.max_attempts,
            created_at=instant_of(self.created_at),
            due_at=instant_of(self.due_at),
            claimed_at=None if self.claimed_at is None else instant_of(self.claimed_at),
            started_at=None if self.started_at is None else instant_of(self.started_at),
            ended_at=None if self.ended_at is None else instant_of(self.ended_at),
            expires_at=None if self.expires_at is None else instant_of(self.expires_at),
            failures=self.failures,
            crashes=self.crashes,
            snoozes=self.snoozes,
            hand_backs=self.hand_backs,
            epoch=self.epoch,
            worker=self.worker,
            progress=self.progress,
            result=self.result,
            payload=self.payload,
            reason=self.reason,
            waiting_for=self.waiting_for,
            errors=self.errors,
            cancel_requested=self.cancel_requested is not None,
            headers=envelope.headers,
        )
