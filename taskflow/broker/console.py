"""The operations of the command line on a store. No worker needs them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Literal, Protocol

import msgspec

from taskflow.model.record import Record, Status
from taskflow.model.session import SessionRecord


class QueueRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a queue.

    `oldest_ready_for`  seconds for which its oldest ready job has been ready
    `next_due_in`       seconds until its first scheduled job is due; negative if upkeep is late
    """

    name: str
    is_paused: bool
    counts: dict[Status, int]
    oldest_ready_for: float | None = None
    next_due_in: float | None = None


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects jobs; an empty field admits all. `ended_before` is in seconds ago. `poison` admits only jobs that ended as poison."""

    queue: str | None = None
    job: str | None = None
    statuses: tuple[Status, ...] = ()
    ended_before: float | None = None
    poison: bool = False


class Redone(Enum):
    """The result of an operator's retry."""

    OK = "ok"
    UNKNOWN = "unknown"
    LIVE = "it has not ended"
    SUCCEEDED = "it has succeeded, and its payload is gone"
    KEY_TAKEN = "another live job has its key"


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the store was created, by queue and event (the value of a `record.Event`, or "dropped over the cap")."""

    totals: dict[str, dict[str, int]]


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: its topic and level, and a text. A `problem` may lose jobs; a `note` is good to know."""

    topic: str
    level: Literal["ok", "note", "problem"]
    says: str


class Console(Protocol):
    """Each clause in brackets is a conformance test, as in `protocol`."""

    async def queues(self) -> list[QueueRecord]:
        """Every queue that has or had jobs, or is paused, by name. [console_queues]"""
        ...

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        """Return the newest first (by id), below the id `before`. Contains only jobs that `read` would return. [console_browse]"""
        ...

    async def workers(self) -> list[SessionRecord]:
        """Return the sessions that are alive, and dead ones that still have leases, by name. [console_workers]"""
        ...

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        """Make failed and cancelled jobs READY now, with fresh counters and no expiry. Their errors are kept. [console_retry]"""
        ...

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        """Drop ended jobs; cancel and drop waiting ones. Running jobs are left alone. Return how many were dropped. [console_purge]

        Their ids stay known for `repeat_for`, so that a resent enqueue does not add one again.
        """
        ...

    async def pause(self, queue: str) -> None:
        """Claim nothing more from the queue until `resume`. Its running jobs go on. A second pause changes nothing. [console_pause]"""
        ...

    async def resume(self, queue: str) -> None:
        """End a pause, and nudge the queue. [console_pause]"""
        ...

    async def metrics(self) -> Metrics:
        """[console_metrics]"""
        ...

    async def examine(self) -> list[Finding]:
        """Return what an operator should know about the store: how safe its jobs are, and how much room it has. [console_examine]"""
        ...
