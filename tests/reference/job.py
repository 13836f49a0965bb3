"""A job as the reference broker stores it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.job_schema import Counters
from taskflow.model.record import Record, Status, record_of
from taskflow.model.session import Session
from taskflow.model.stored_values import FieldReader
from taskflow.model.transitions import due_at
from taskflow.model.verdict import Progress, RunError

T = TypeVar("T")


class _Decoded(FieldReader):
    """Reads fields that are decoded already."""

    def read(self, column: str, stored: Any, decode: Callable[[Any], T], default: T) -> T:
        value: T = stored
        return value


class Fence(msgspec.Struct, frozen=True, gc=False):
    """Identifies one lease, even if the store has lost its latest changes and assigns the same epochs again."""

    epoch: int
    claim: ClaimId


Entry = tuple[int, int, int, bytes]
"""A job's place among the ready jobs of its queue, followed by its id."""


class StoredJob(msgspec.Struct, gc=False, eq=False, kw_only=True):
    """A job's envelope and state. `entry` is its latest entry among the ready jobs. Times are microseconds since 1970, except
    `claimed_steady`.

    The garbage collector skips these objects, which are never part of a cycle. Otherwise it would scan all stored jobs again and again.
    """

    envelope: Envelope
    queue: str
    payload: bytes | None
    joins: tuple[bytes, ...]
    id: bytes
    seq: int
    priority: int
    created_at: int
    due_at: int
    expires_at: int | None
    key: bytes | None
    awaits: int
    behind: bytes | None = None
    epoch: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    claimed_at: int | None = None
    claimed_steady: int = 0
    started_at: int | None = None
    parked_at: int | None = None
    is_poison: int = 0
    cause: bytes | None = None
    ended_at: int | None = None
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
            expires_at=None if envelope.expires is None else now + to_microseconds(envelope.expires),
            joins=envelope.joins,
            id=envelope.id,
            priority=envelope.priority,
            payload=envelope.payload,
            key=envelope.key,
            awaits=envelope.awaits,
        )

    @property
    def place(self) -> tuple[int, int, int]:
        """Return the job's place among the ready jobs of its queue. The job with the smallest place is claimed first."""
        return (-self.priority, self.due_at, self.seq)

    def is_expired(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def is_kept(self, now: int) -> bool:
        return self.status is not None and (self.ended_at is None or (self.fade_at or 0) > now)

    @property
    def run_started_at(self) -> int | None:
        """When the run started, or when it was claimed if its worker has not reported the start."""
        return self.claimed_at if self.started_at is None else self.started_at

    @property
    def counters(self) -> Counters:
        return Counters(self.failures, self.crashes, self.snoozes, self.hand_backs, self.parked_at)

    def make_fresh(self, now: int) -> None:
        """Reset the job as if it had just been enqueued, but keep its errors."""
        self.due_at = now
        self.worker = self.started_at = self.ended_at = self.fade_at = self.expires_at = self.behind = self.parked_at = None
        self.progress = self.cancel_requested = self.reason = self.waiting_for = self.cause = None
        self.awaits = self.failures = self.crashes = self.snoozes = self.hand_backs = self.is_poison = 0

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
        return Lease(
            envelope=self.envelope,
            epoch=self.epoch,
            claim=self.claim,
            created_at=self.created_at,
            waited=now - self.due_at,
            failures=self.failures,
            crashes=self.crashes,
            snoozes=self.snoozes,
            hand_backs=self.hand_backs,
            parked_for=0.0 if self.parked_at is None else to_seconds(now - self.parked_at),
            expires_in=None if self.expires_at is None else to_seconds(self.expires_at - now),
            poison=poison,
        )

    @property
    def awaited(self) -> int:
        return max(0, self.awaits - (self.behind is not None)) if self.status is Status.HELD else 0

    @property
    def in_flow(self) -> dict[str, Any]:
        return {}  # it has no flows

    def to_record(self) -> Record:
        assert self.status is not None
        envelope = self.envelope
        return record_of(
            self, _Decoded(), id=self.id, name=envelope.job, queue=self.queue, status=self.status, extras=msgspec.structs.asdict(envelope)
        )
