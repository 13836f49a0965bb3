"""The leases that a worker holds, each from its claim until its settlement is answered. Heartbeats report them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from taskflow.app.context import JobContext
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.ids import id_text
from taskflow.model.session import Report
from taskflow.model.verdict import Progress, Verdict, attach_exception, detach_exception

NOTHING_YET: Final = object()

CompleteOn = Callable[["HeldLease", object, object], Awaitable[None]]
# Minimum seconds between two scans of the deadlines. A timeout may be noticed that much later, but ten thousand long runs cost little.
SWEEP_INTERVAL: Final = 0.01


@dataclass(eq=False, slots=True)
class HeldLease:
    """A lease that the worker holds, and the state of its run. Times are on the monotonic clock."""

    lease: Lease
    taken_at: float = 0.0
    begins_by: float | None = None  # the deadline for starting the run
    started: float | None = None
    progress: Progress | None = None
    reported: object = NOTHING_YET  # the progress in the last heartbeat
    on_report: Callable[[], None] | None = None  # called, from any thread, when the run has reported progress
    stop: Callable[[], object] | None = None  # stops the run; None before it begins and after it has ended
    in_thread: asyncio.Future[Any] | None = None  # the future of the run's plain function, if that runs in a thread
    why_stopped: str | None = None  # the reason to stop, as in `executor.CANCELLED`
    asked_at: float | None = None  # when the run was asked to stop
    reminders: int = 0  # how many times the run has been reported as still running
    is_offered: bool = False  # True once its settlement is queued
    is_held_up: bool = False  # True once its settlement has been set aside, usually because another program's transaction blocks it
    completed: bytes | None = None  # the result with which the run was, or may have been, settled in a transaction
    complete_on: CompleteOn | None = None  # completes the run in a transaction; set by the executor
    raised: list[Verdict] | None = None  # the run's verdicts that have an exception attached
    child_headers: dict[str, str] | None = None  # headers for the child process in addition to those sent; None if the run has no child

    def ask_to_stop(self, why: str) -> None:
        """Ask the run to stop. Only the first call has an effect."""
        if self.why_stopped is None:
            self.why_stopped = why
            self.asked_at = time.monotonic()
            if self.stop is not None:
                self.stop()

    def report(self, progress: Progress) -> None:
        """Record the run's progress for the next heartbeat and for the settlement. May be called from any thread."""
        self.progress = progress
        if self.on_report is not None:
            self.on_report()

    def record_raised(self, verdict: Verdict, error: BaseException) -> None:
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


class LeaseTable:
    """The leases that a session holds. The event loop writes the table, and the heartbeat's thread reads it: each read makes a copy in one
    atomic step. `on_news` is called, from any thread, when a run has reported progress that no heartbeat has included yet."""

    def __init__(self) -> None:
        self._held: dict[ClaimId, HeldLease] = {}
        self._is_on_trial = self._is_closed = False
        self.on_news: Callable[[], None] = lambda: None
        self._has_news = False
        self._on_report = self._record_news  # bound once, not for each lease
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_open(self) -> bool:
        """True if the session may claim leases and start waiting runs. False during a quarantine, and once the session is lost."""
        return not (self._is_on_trial or self._is_closed)

    def set_trial(self, is_on_trial: bool) -> None:
        self._is_on_trial = is_on_trial
        self.nudge()

    def close(self) -> None:
        self._is_closed = True
        self.nudge()

    def add(self, lease: Lease, claimed_at: float) -> HeldLease:
        """Add a lease. Its expiry is counted from `claimed_at`, a time before the store's answer, so no run starts too late."""
        begins_by = None if lease.expires_in is None else claimed_at + lease.expires_in
        holding = self._held[lease.claim] = HeldLease(lease, time.monotonic(), begins_by)
        holding.on_report = self._on_report
        return holding

    def remove(self, claims: Iterable[ClaimId]) -> None:
        for claim in claims:
            self._held.pop(claim, None)
        self.nudge()

    def get(self, claim: ClaimId) -> HeldLease | None:
        return self._held.get(claim)

    def holds(self, holding: HeldLease) -> bool:
        return self._held.get(holding.lease.claim) is holding

    def all(self) -> list[HeldLease]:
        return list(self._held.values())

    def held_by(self, run: JobContext) -> HeldLease | None:
        """Return the lease of a run, or None if it's no longer held. May be called from any thread."""
        for holding in self.all():
            if holding.lease.epoch == run.epoch and id_text(holding.lease.envelope.id) == run.job_id:
                return holding
        return None

    def unanswered(self) -> list[HeldLease]:
        return [holding for holding in self.all() if holding.is_offered]

    def nudge(self) -> None:
        """Wake the tasks that are waiting for a change."""
        self._changed.set()

    async def wait_for_change(self, timeout: float | None = None) -> None:
        """Wait for a change, at most `timeout` seconds. Check before waiting: earlier changes are not remembered."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    def claims(self) -> tuple[ClaimId, ...]:
        return tuple(self._held)

    def reports(self) -> tuple[Report, ...]:
        """Return a report for each run whose start or latest progress no heartbeat has included yet."""
        self._has_news = False  # cleared first, so that later progress requests another heartbeat
        now = time.monotonic()
        return tuple(
            Report(holding.lease.claim, now - started, progress)
            for holding in self.all()
            if (started := holding.started) is not None and holding.reported is not (progress := holding.progress)
        )

    def reported(self, reports: Iterable[Report]) -> None:
        """Record that these reports have been sent or dropped."""
        for report in reports:
            if (holding := self._held.get(report.claim)) is not None:
                holding.reported = report.progress

    def _record_news(self) -> None:
        if not self._has_news:
            self._has_news = True
            self.on_news()


class Deadlines:
    """The deadlines of the runs in one event loop. `on_due` is called once for each run whose deadline has passed."""

    def __init__(self, on_due: Callable[[HeldLease], None]) -> None:
        self._on_due = on_due
        self._due_at: dict[HeldLease, float] = {}
        self._checks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, holding: HeldLease, seconds: float) -> None:
        """Set the run's deadline to `seconds` from now."""
        loop = asyncio.get_running_loop()
        due_at = self._due_at[holding] = loop.time() + seconds
        if due_at < self._checks_at:
            self._check_at(loop, due_at)

    def remove(self, holding: HeldLease) -> None:
        """Remove the run's deadline. The timer isn't cancelled, because the next run is unlikely to need an earlier one."""
        self._due_at.pop(holding, None)

    def _check_at(self, loop: asyncio.AbstractEventLoop, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._checks_at = instant
        # Without a separate context, the timer would keep the run's context variables long after the run has ended.
        self._timer = loop.call_at(instant, self._check, context=contextvars.Context())

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer, self._checks_at = None, math.inf
        for holding in [holding for holding, due_at in self._due_at.items() if due_at <= now]:
            self.remove(holding)
            self._on_due(holding)
        if self._due_at:
            self._check_at(loop, max(now + SWEEP_INTERVAL, min(self._due_at.values())))
