"""What the command line and the dashboard ask of a store; no worker needs it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Literal, Protocol

import msgspec

from taskflow.model.record import Record, Status
from taskflow.model.session import SessionRecord


class QueueRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as it stands.

    `oldest_ready_for`  seconds that its longest-waiting ready job has been ready
    `next_due_in`       seconds until its first scheduled job is due, negative when upkeep is late
    """

    name: str
    is_paused: bool
    counts: dict[Status, int]
    oldest_ready_for: float | None = None
    next_due_in: float | None = None


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs; empty fields admit all. `ended_before` in seconds ago. `poison` admits only jobs that ended as poison."""

    queue: str | None = None
    job: str | None = None
    statuses: tuple[Status, ...] = ()
    ended_before: float | None = None
    poison: bool = False


class Redone(Enum):
    """What an operator's retry came to."""

    OK = "ok"
    UNKNOWN = "unknown"
    LIVE = "it has not ended"
    SUCCEEDED = "it has succeeded, and its payload is gone"
    KEY_TAKEN = "another live job has its key"


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the store was made, by queue and event (a word of `record.Event`, or "dropped over the cap")."""

    totals: dict[str, dict[str, int]]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: what, how it stands, and in words. A `problem` may lose jobs; a `note` is good to know."""

    topic: str
    level: Literal["ok", "note", "problem"]
    says: str


class Console(Protocol):
    """Each clause in brackets is a conformance test, as in `protocol`."""

    async def queues(self) -> list[QueueRecord]:
        """Every queue that has or had jobs, or is paused, by name. [console_queues]"""
        ...

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        """The newest first (by id), those below the id `before`; only what `read` would give. [console_browse]"""
        ...

    async def workers(self) -> list[SessionRecord]:
        """The sessions that are not dead, or dying with leases, by name. [console_workers]"""
        ...

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        """Failed and cancelled jobs become READY now, with fresh counters, no expiry, their errors kept. [console_retry]"""
        ...

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        """Drops ended jobs and cancels and drops waiting ones; what runs is left alone. How many. [console_purge]

        Their ids stay known for `repeat_for`, so that a resent enqueue does not bring one back.
        """
        ...

    async def pause(self, queue: str) -> None:
        """Nothing of the queue is claimed until `resume`; what runs goes on. Pausing twice is once. [console_pause]"""
        ...

    async def resume(self, queue: str) -> None:
        """Ends a pause, and nudges the queue. [console_pause]"""
        ...

    async def metrics(self) -> Metrics:
        """[console_metrics]"""
        ...

    async def examine(self) -> list[Finding]:
        """What an operator should know of the store: how safe jobs are in it, and what room it has. [console_examine]"""
        ...
