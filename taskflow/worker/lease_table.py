"""The leases that a worker holds, each from its claim until its settlement is answered. Heartbeats report them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Any, Final

from taskflow.app.context import JobContext
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.ids import id_text
from taskflow.model.session import Report
from taskflow.model.verdict import Progress, Verdict, attach_exception, detach_exception

NOTHING_YET: Final = object()

CompleteOn = Callable[["HeldLease", object, object], Awaitable[None]]


class HeldLease:
    """A lease that the worker holds, and the state of its run.

    `why_stopped`  why the run was asked to stop, or None
    `is_offered`   True once its settlement has been offered
    `is_held_up`   True once its settlement has been set aside, usually because another program's transaction blocks it
    `in_thread`    the future of its plain function, if that runs in a thread, or None
    `taken_at`     when the lease arrived; this and the next three are on the monotonic clock
    `begins_by`    the deadline for starting the run
    `started`      when the run started
    `asked_at`     when the run was asked to stop
    `reminders`    how many times it has been reported that the run has not stopped
    `reported`     the progress in the last heartbeat
    `on_report`    called, from any thread, when the run has reported progress
    `complete_on`  completes the run in a transaction: set by what runs it
    `raised`       the verdicts of the run that have their exception attached, or None
    `completed`    the result with which the run has been settled in a transaction, or may have been; None if it has not
    """

    __slots__ = (
        "asked_at",
        "begins_by",
        "complete_on",
        "completed",
        "in_thread",
        "is_held_up",
        "is_offered",
        "lease",
        "on_report",
        "progress",
        "raised",
        "reminders",
        "reported",
        "started",
        "stop",
        "taken_at",
        "why_stopped",
    )

    def __init__(self, lease: Lease, taken_at: float = 0.0, begins_by: float | None = None) -> None:
        self.lease = lease
        self.taken_at = taken_at
        self.begins_by = begins_by
        self.started: float | None = None
        self.progress: Progress | None = None
        self.reported: object = NOTHING_YET
        self.on_report: Callable[[], None] | None = None
        self.stop: Callable[[], None] | None = None
        self.in_thread: asyncio.Future[Any] | None = None
        self.why_stopped: str | None = None
        self.asked_at: float | None = None
        self.reminders = 0
        self.is_offered = False
        self.is_held_up = False
        self.completed: bytes | None = None
        self.complete_on: CompleteOn | None = None
        self.raised: list[Verdict] | None = None

    @property
    def is_too_late(self) -> bool:
        return self.begins_by is not None and time.monotonic() >= self.begins_by

    def ask_to_stop(self, why: str) -> None:
        """Ask the run to stop. Only the first call has an effect."""
        if self.why_stopped is None:
            self.why_stopped = why
            self.asked_at = time.monotonic()
            if self.stop is not None:
                self.stop()

    def report(self, progress: Progress) -> None:
        """Keep the run's progress for the next heartbeat and for the settlement. May be called from any thread."""
        self.progress = progress
        if self.on_report is not None:
            self.on_report()

    def note_raised(self, verdict: Verdict, error: BaseException) -> None:
        """Attach the exception to a verdict of the run, until `forget_raised` is called."""
        attach_exception(verdict, error)
        self.raised = [*(self.raised or ()), verdict]

    def forget_raised(self) -> None:
        for verdict in self.raised or ():
            detach_exception(verdict)
        self.raised = None

    def complete_in(self, connection: object, result: object) -> Awaitable[None]:
        """Complete the run in a transaction, as `JobContext.complete_in` describes."""
        assert self.complete_on is not None
        return self.complete_on(self, connection, result)

    def note_completing(self) -> None:
        """Note that a child process may complete the run in a transaction. The child's verdict says whether it has tried."""
        self.completed = b""


class Intake(Enum):
    """Whether a session claims new leases and starts waiting ones."""

    OPEN = "open"
    ON_TRIAL = "on trial"
    """While a quarantine is trying jobs that have crashed, the session neither claims new leases nor starts waiting ones."""

    OVER = "over"
    """The session is lost, and never claims or starts leases again."""


class LeaseTable:
    """The leases that a session holds. The event loop writes the table,
    and the heartbeat thread reads it: each read makes a copy in one atomic step.

    `on_news` is called, from any thread, when a run has reported progress that has not been in a heartbeat yet.
    """

    def __init__(self) -> None:
        self._held: dict[ClaimId, HeldLease] = {}
        self._intake = Intake.OPEN
        self.on_news: Callable[[], None] = lambda: None
        self._has_news = False
        self._on_report = self._note_news  # bound once, not for each lease
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    # --- whether there is room for new leases -----------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._intake is Intake.OPEN

    def begin_trial(self) -> None:
        self._move(Intake.ON_TRIAL)

    def end_trial(self) -> None:
        self._move(Intake.OPEN)

    def close(self) -> None:
        self._move(Intake.OVER)

    def _move(self, intake: Intake) -> None:
        if self._intake is not Intake.OVER:
            self._intake = intake
        self.nudge()

    # --- the leases -------------------------------------------------------------------------------------

    def add(self, lease: Lease, claimed_at: float) -> HeldLease:
        """Add a lease. If its job has an expiry, the remaining time is counted from `claimed_at`, when the
        claim was sent. The store computed the remaining time later, so no run starts after the expiry."""
        begins_by = None if lease.expires_in is None else claimed_at + lease.expires_in
        holding = self._held[lease.claim] = HeldLease(lease, time.monotonic(), begins_by)
        holding.on_report = self._on_report
        return holding

    def remove(self, claims: Iterable[ClaimId]) -> None:
        """Remove leases whose settlements the store has answered, or which are lost."""
        for claim in claims:
            self._held.pop(claim, None)
        self.nudge()

    def get(self, claim: ClaimId) -> HeldLease | None:
        return self._held.get(claim)

    def holds(self, holding: HeldLease) -> bool:
        """Return True until the lease is settled or lost."""
        return self._held.get(holding.lease.claim) is holding

    def all(self) -> list[HeldLease]:
        return list(self._held.values())

    def held_by(self, run: JobContext) -> HeldLease | None:
        """Return the lease of a run, or None if it is no longer held. May be called from any thread."""
        for holding in self.all():
            if holding.lease.epoch == run.epoch and id_text(holding.lease.envelope.id) == run.job_id:
                return holding
        return None

    def unanswered(self) -> list[HeldLease]:
        """Return the leases whose settlements have been offered but not answered."""
        return [holding for holding in self.all() if holding.is_offered]

    def do_not_end(self, asked_before: float) -> bool:
        """Return True if every run was asked to stop, by a timeout or a cancellation, at `asked_before` or earlier."""
        return all(holding.asked_at is not None and holding.asked_at <= asked_before for holding in self.all())

    # --- waiting ----------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Wake the tasks that are waiting for a change."""
        self._changed.set()

    async def wait_for_change(self, timeout: float | None = None) -> None:
        """Wait until a lease is removed, a run ends, `nudge` is called, or `timeout`
        seconds have passed. Check before waiting: earlier changes are not remembered."""
        self._changed.clear()
        if timeout is None:
            await self._changed.wait()
            return
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return

    # --- what heartbeats report -------------------------------------------------------------------------

    def claims(self) -> tuple[ClaimId, ...]:
        return tuple(self._held)

    def reports(self) -> tuple[Report, ...]:
        """Return a report for each run whose start or progress has not been in a heartbeat yet."""
        self._has_news = False  # cleared first, so that later progress asks for a heartbeat again
        now = time.monotonic()
        reports: list[Report] = []
        for holding in self.all():
            started, progress = holding.started, holding.progress
            if started is not None and holding.reported is not progress:
                reports.append(Report(holding.lease.claim, now - started, progress))
        return tuple(reports)

    def reported(self, reports: Iterable[Report]) -> None:
        """Record that these reports have been sent or dropped."""
        for report in reports:
            if (holding := self._held.get(report.claim)) is not None:
                holding.reported = report.progress

    def _note_news(self) -> None:
        if not self._has_news:
            self._has_news = True
            self.on_news()
