"""Store operations for the command line. Workers do not need them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Literal, Protocol

import msgspec

from taskflow.model.record import Record, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord


class QueueRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a queue.

    `oldest_ready_for`  seconds since its oldest ready job became ready
    `next_due_in`       seconds until its first scheduled job is due; negative if upkeep is late
    """

    name: str
    is_paused: bool
    counts: dict[Status, int]
    oldest_ready_for: float | None = None
    next_due_in: float | None = None


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects jobs; an empty field matches every job.

    `ended_before` matches jobs that ended at least that many seconds ago. If `poison` is True, only jobs that failed as poison match.
    """

    queue: str | None = None
    job: str | None = None
    statuses: tuple[Status, ...] = ()
    ended_before: float | None = None
    poison: bool = False


class Redone(Enum):
    """The result of retrying one job from the console."""

    OK = "ok"
    UNKNOWN = "unknown"
    LIVE = "it has not ended yet"
    SUCCEEDED = "it succeeded, so its payload is gone"
    KEY_TAKEN = "another live job has its key"


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Event counts since the store was created, by queue and then by event. An event is named by a value of `transitions.Event`, or is
    "dropped over the cap"."""

    totals: dict[str, dict[str, int]]


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: topic, level and text. A `problem` means that jobs may be lost; a `note` is for information."""

    topic: str
    level: Literal["ok", "note", "problem"]
    says: str


class Console(Protocol):
    """The operations behind the command line. As in `protocol`, each name in brackets is the name of a conformance test."""

    async def queues(self) -> list[QueueRecord]:
        """Return every queue that is paused or has ever had jobs, sorted by name. [console_queues]"""
        ...

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        """Return the newest jobs whose ids are below `before`, newest first.
        Only jobs that `read` would return are listed. [console_browse]"""
        ...

    async def workers(self) -> list[SessionRecord]:
        """Return all live sessions, and dead ones that still hold leases, sorted by name. [console_workers]"""
        ...

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        """Make failed and cancelled jobs READY now, with fresh counters and no expiry. Their errors are kept. [console_retry]"""
        ...

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        """Drop up to `limit` matching jobs, and return their number. Waiting ones are cancelled first; running ones stay. [console_purge]

        The ids stay known for `repeat_for`, so that a resent enqueue does not add the jobs again.
        """
        ...

    async def pause(self, queue: str) -> None:
        """Stop claims from the queue until `resume`. Jobs that are already
        running continue. A second pause changes nothing. [console_pause]"""
        ...

    async def resume(self, queue: str) -> None:
        """End a pause, and wake the queue's workers. [console_pause]"""
        ...

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        """Return the schedules with these names, or all of them, sorted by name. [console_schedules]"""
        ...

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        """Pause, resume or remove a schedule. [console_amend_schedule]

        Return True on success, even if nothing had to change. Return False if there is no such schedule, or if it cannot be
        removed because a living session declares it.
        """
        ...

    async def metrics(self) -> Metrics:
        """Return the number of events in each queue since the store was created. [console_metrics]"""
        ...

    async def examine(self) -> list[Finding]:
        """Return findings about the store: how safe its jobs are, and how much space it has. [console_examine]"""
        ...
