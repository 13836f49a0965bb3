"""Store operations for operators: the command line, the dashboard and applications call them. Running jobs doesn't need them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Final, Literal, Protocol

import msgspec

from taskflow.model.audit import Action, ActionRecord
from taskflow.model.limits import Gate
from taskflow.model.measures import MeasuresRecord
from taskflow.model.record import Record, Status
from taskflow.model.schedule import Amendment, ScheduleRecord
from taskflow.model.session import SessionRecord


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a queue.

    `counts`            the number of its jobs by `Status`
    `oldest_ready_for`  seconds since its oldest ready job became ready; None if no job is ready
    `next_due_in`       seconds until its first scheduled job is due, negative if maintenance is late; None if no job is scheduled
    """

    name: str
    is_paused: bool
    counts: dict[Status, int]
    oldest_ready_for: float | None = None
    next_due_in: float | None = None


class LimitedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that holds a slot of a limit, or waits for one.

    `id`          its id, as text
    `job`         the name of the job
    `queue`       its queue
    `is_running`  True if a worker is running it; if False and it holds a slot, it is READY
    """

    id: str
    job: str
    queue: str
    is_running: bool


MAX_LISTED: Final = 10_000
"""The maximum number of gates that `limits` returns."""


class LimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, for one value of its key, that currently holds up jobs or whose number was set.

    `limit`     its name: the job's name, or the name of the shared `Limit`
    `key`       the value of its key; "" if it has none
    `n`         the number in force
    `is_set`    True if `limits.set` has set the number, False if it is the declared one
    `running`   how many jobs hold a slot: they are ready or running. 0 for a rate
    `waiting`   how many jobs are waiting for a slot, up to 1,000; 0 for a rate, whose jobs wait for their start times instead.
                `list` counts them for at most 200 limits; for the rest, this is 1 if any job is waiting
    `per`       the period of a rate, in seconds; None for a `Concurrency`
    `burst`     for a rate, how many jobs may start at once
    `opens_in`  for a rate, the seconds until a job sent now could start, behind those already waiting; otherwise 0
    `closed_for`  for a rate, the seconds for which a `RateLimited` keeps it closed; otherwise 0
    `holders`   at most ten of the jobs that hold a slot, running ones first. Only 1,000 running and 1,000 ready jobs are searched
    `next`      up to ten waiting jobs that will get through next, in order
    """

    limit: str
    key: str
    n: int
    is_set: bool
    running: int
    waiting: int
    per: float | None
    burst: int
    opens_in: float
    closed_for: float = 0.0
    holders: tuple[LimitedJob, ...] = ()
    next: tuple[LimitedJob, ...] = ()


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Selects jobs, listed by status. An empty field matches every job.

    `statuses`      the statuses, listed one after another in the order of `Status`, which follows a job's life
    `queue`         the name of the queue
    `tag`           the tag; its jobs are listed newest first, and stores read no other jobs
    `job`           the name of the job
    `error`         a text that occurs in the job's last error or in the reason for its end, ignoring case
    `header`        the name of a header, with its value, or with None for any value
    `created_before`, `ended_before`  the job was created, or ended, at least this many seconds ago
    `poison`        True for jobs that failed as poison
    """

    statuses: tuple[Status, ...] = ()
    queue: str | None = None
    tag: str | None = None
    job: str | None = None
    error: str | None = None
    header: tuple[str, str | None] | None = None
    created_before: float | None = None
    ended_before: float | None = None
    poison: bool = False

    @property
    def is_checked_by_store(self) -> bool:
        """True if no condition requires jobs to be decoded. `purge` accepts only such views."""
        return self.error is None and self.header is None and self.created_before is None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs.

    `cursor`         where the next page begins, as text that is safe in a URL; None after the last page
    `examined`       how many jobs were read to find `records`
    `stopped_early`  True if the page is not full because as many jobs were read as a page may read; more may match
    """

    records: list[Record]
    cursor: str | None
    examined: int
    stopped_early: bool


EXAMINED: Final = 800
"""The maximum number of jobs read for one page."""


class Redone(Enum):
    """The result of an operator's retry of one job."""

    OK = "ok"
    UNKNOWN = "unknown"
    LIVE = "it has not ended yet"
    SUCCEEDED = "it has succeeded"
    KEY_TAKEN = "another live job has its key"
    CANCELLED_AGAIN = "it was cancelled again, because another job of its flow failed, or was cancelled or dropped: retry the whole flow"


class FailureGroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The failed jobs that have the same cause.

    `fingerprint`  the fingerprint of their failures (see `model/fingerprint.py`), or `fingerprint.UNKNOWN` for jobs without a valid cause
    `count`        the number of jobs
    `first`        when the first of them failed
    `last`         when the last of them failed
    `jobs`         the number of jobs by name
    `deploys`      the number of jobs by deploy, without those whose deploy is unknown
    `sample`       the id of the job that failed last
    """

    fingerprint: bytes
    count: int
    first: datetime
    last: datetime
    jobs: dict[str, int]
    deploys: dict[str, int]
    sample: bytes


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Event counts since the store was created, by queue and then by event. An event is named by a value of `transitions.Event`, or is
    "dropped over the cap"."""

    totals: dict[str, dict[str, int]]


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: topic, level and text. A `problem` means that jobs may be lost; a `note` is for information."""

    topic: str
    level: Literal["ok", "note", "problem"]
    says: str


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `rebuild`.

    `corrected`   the number of corrections by kind: the name of an index for its wrong or missing entries, `counts` for wrong counts, and
                  `slots of limits` for limits whose number of taken slots was wrong
    `records`     how many records the store has
    `unreadable`  how many of the records that had to be decoded were unreadable; these and their entries were left unchanged
    """

    corrected: dict[str, int] = {}
    records: int = 0
    unreadable: int = 0


class Admin(Protocol):
    """An operator's view of a store. As in `protocol`, each name in brackets is the name of a conformance test."""

    async def queues(self) -> list[QueueInfo]:
        """Return every queue that is paused or has ever had jobs, sorted by name. [admin_queues]"""
        ...

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        """Return at most `limit` jobs of a view, starting at the cursor. Only jobs that `read` would return are listed. [page_lists]

        The jobs of a status are listed in the order of an index [page_order]:

        HELD                          in the order of their arrival
        SCHEDULED                     the next one due first
        READY                         queue by queue, sorted by name, the next one to run first
        RUNNING                       session by session, sorted by id, in the order of their claims
        SUCCEEDED, FAILED, CANCELLED  the newest end first

        With a tag, jobs are listed newest first, whatever their status. [page_tag]

        A page begins after the job at which the previous one ended, even if that job has changed or is gone. So no job that keeps its
        status and position is left out or listed twice. Jobs that are added after the first page are not listed, so the pages have an
        end. [page_cursor]

        At most `EXAMINED` jobs are read for a page, and fewer if the view has `error`, `header` or `created_before`, or if jobs are no
        longer kept but maintenance has yet to drop them. If there are many of those, or a field of the view has no index, a page with a
        cursor may therefore have fewer jobs than `limit`, or none. Each queue has an index of its SCHEDULED, READY, SUCCEEDED, FAILED and
        CANCELLED jobs. [page_bounded]

        Raises ValueError if the cursor is damaged, or belongs to a view with other statuses. [page_refuses]
        """
        ...

    async def workers(self) -> list[SessionRecord]:
        """Return all live sessions, and dead ones that still hold leases, sorted by name. [admin_workers]"""
        ...

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        """Make failed and cancelled jobs READY now, with fresh counters and no expiry. Their errors are kept. [admin_retry]

        In a flow, a job is HELD until the jobs that it awaits have succeeded. The jobs that its failure cancelled are restored. [flow_redo]
        """
        ...

    async def flow(self, flow: bytes, *, first: int = 0, limit: int = 1_000) -> list[Record]:
        """Return at most `limit` jobs of a flow, from the number `first` on, in the order of their numbers, without arguments and results.
        Jobs that are no longer kept are left out. [admin_flow]"""
        ...

    async def flows(self, limit: int = 20) -> list[Record]:
        """Return the last stored job of each of the `limit` newest flows, newest first, without arguments and results. [admin_flows]"""
        ...

    async def cancel_flow(self, flow: bytes) -> int:
        """Cancel the waiting jobs of a flow, and ask the running ones to stop. Return the number of these jobs.

        After this call, no job of the flow starts unless an operator retries it. If the caller dies, upkeep cancels the rest a few seconds
        later. [flow_cancel]
        """
        ...

    async def run_now(self, ids: Sequence[bytes]) -> list[Status | None]:
        """Make SCHEDULED jobs due now: each is READY once it passes its gates. Jobs that already wait at a gate stay there. [admin_run_now]

        Return the status that each job had, or None for one that `read` would not return. Jobs with other statuses stay as they are: a HELD
        job keeps waiting for other jobs, or for the running job with its key. [admin_run_now_leaves]
        """
        ...

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        """Return the `limit` largest groups of failed jobs, or of those in a queue or with a job name, largest first. [admin_failures]

        Each failed job is in one group until an operator retries it or it is dropped. The counts come from one snapshot and are exact.
        While no job changes, they add up to the number of failed jobs in `queues`. [admin_failures_exact] The cause of a settled job is
        that of its settlement. A poison job has the fingerprint of its last worker's death, and the deploy of that worker.
        [admin_failures_poison] Stores count with an index, and read only the last job of each group.
        """
        ...

    async def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        """Return the ids of the failed jobs with this fingerprint, in no particular order. A job that joins or leaves its group during the
        call may be missing. [admin_failures_ids]"""
        ...

    async def purge(self, view: View, *, limit: int = 1_000) -> int:
        """Drop up to `limit` matching jobs, and return their number. Waiting jobs are cancelled first; running jobs stay. [admin_purge]

        Each job is dropped in a separate step, if it still matches then and isn't running. A job that begins to match during the call may
        stay. The ids stay known for `repeat_for`, so that a resent enqueue does not add the jobs again. A view with a tag drops no job
        without that tag. [admin_purge_tag] If purging a job cancels others of its flow, those that match are dropped too, and the rest are
        kept for `PURGED_TTL` seconds.
        """
        ...

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        """Drop ended jobs, as `purge` does. Return the status that each job had, or None for one that `read` would not return. Live jobs
        stay as they are. [admin_drop]"""
        ...

    async def pause(self, queue: str) -> None:
        """Let no worker claim jobs from the queue until `resume`. Running jobs continue. A second pause changes nothing. [admin_pause]"""
        ...

    async def resume(self, queue: str) -> None:
        """End a pause, and wake the queue's workers. [admin_pause]"""
        ...

    async def pause_job(self, job: str) -> None:
        """Start no more jobs with this name until `resume_job`. Running ones continue. A second pause changes nothing.

        The answers to registrations and heartbeats name the paused jobs, and every living session is nudged. A job that its session hands
        back with `is_paused` is parked: it becomes SCHEDULED, with a `waiting_for` that names the pause. No counter is raised. If the pause
        is over by then, the job becomes READY in its old place instead. A job parked for an hour becomes READY, and is parked again when it
        is claimed.

        Raises BrokerRefused if 100 job names are paused already. [job_pause]
        """
        ...

    async def resume_job(self, job: str) -> bool:
        """End a pause, and make parked jobs READY in their old places. Return True if more may be left: call again then. [job_pause]"""
        ...

    async def paused_jobs(self) -> list[str]:
        """Return the names of the paused jobs, sorted. [job_pause]"""
        ...

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        """Return the schedules with these names, or all of them, sorted by name. [admin_schedules]"""
        ...

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        """Pause, resume or remove a schedule. [admin_amend_schedule]

        Return True on success, even if nothing had to change. Return False if there is no such schedule, or if it cannot be
        removed because a living session declares it.
        """
        ...

    async def record_action(self, action: Action) -> None:
        """Add an operator's action to the audit log, with the store's time. [admin_acts]

        Resending an action does not add it twice. [admin_acts_repeat]
        The log keeps the newest `rules.max_actions`. [admin_acts_bounded]
        """
        ...

    async def actions(self, *, before: int | None = None, limit: int = 100) -> list[ActionRecord]:
        """Return up to `limit` actions, newest first. With `before`, return only actions with lower numbers. [admin_acts]"""
        ...

    async def limits(self, limit: str | None = None, *, job: bytes | None = None) -> list[LimitInfo]:
        """Return the gates of one limit, or of all limits, that are in use or whose number an operator has set. The gates with the most
        waiting jobs come first. If there are more than `MAX_LISTED`, return any of them. With `job`, return instead those gates of the
        job with this id that are in use. [admin_limits]"""
        ...

    async def set_limit(self, gate: Gate, *, is_set: bool) -> None:
        """Set the number of a gate, overriding the senders' numbers. Jobs that can now pass become READY. If `is_set` is False, the number
        that the next sender declares applies. A rate opens, whatever closed it: the jobs that wait for it get new times, in their order.
        [admin_set_limit]"""
        ...

    async def metrics(self) -> Metrics:
        """Return how often each event has occurred in each queue since the store was created. [admin_metrics]"""
        ...

    async def record_measures(self, record_id: bytes, measures: bytes) -> None:
        """Add packed measures to the history, in the current minute of the store's clock. [history_records]

        The same id sent again within a minute adds nothing. [history_repeat]
        """
        ...

    async def history(self, since: datetime, until: datetime) -> list[MeasuresRecord]:
        """Return the periods that overlap this span of time, in order. A period lasts a minute in the last 3 hours, ten minutes in the last
        2 days, and an hour before that, because upkeep merges older periods. After 30 days they are dropped. [history_levels]

        Unreadable measures are ignored. [history_spoilt]
        """
        ...

    async def examine(self) -> list[Finding]:
        """Return findings about the store: how safe its jobs are, how much space it has, and whether indexes and counts agree with the
        records. The comparison stops after a few seconds, and reports what it has found by then. [admin_examine]"""
        ...

    async def rebuild(self) -> Rebuilt:
        """Correct indexes, counts and the slots of limits from the records, after another program has changed the store.

        The records themselves stay as they are. An interrupted call loses nothing, and can be repeated.
        Raises BrokerRefused while a worker is running. [admin_rebuild]
        """
        ...
