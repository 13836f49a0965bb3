"""The leases of a worker, each from its claim to the answer to its settlement. The heartbeat reports them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

from taskflow.app.context import JobContext
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.ids import id_text
from taskflow.model.progress import Progress
from taskflow.model.session import Report

NOTHING_YET: Final = object()


class HeldLease:
    """One lease. `why_stopped` says why its run is being cancelled, once it is; `is_offered` that its settlement is on its way,
    `is_held_up` that somebody's transaction has kept the store from it. `in_thread` is the outcome of its plain function, while that is
    called in a thread.

    `taken_at`, `begins_by`, `started` and `asked_at` are of the monotonic clock: when it came, when no run may begin any more, when its run
    began, when that was asked to stop.
    `reminders` counts how often it was told that the run has not stopped; `reported` is the progress that a beat has told last;
    `on_report` is called, from any thread, when the run has reported progress.
    """

    __slots__ = (
        "asked_at",
        "begins_by",
        "in_thread",
        "is_held_up",
        "is_offered",
        "lease",
        "on_report",
        "progress",
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

    @property
    def is_too_late(self) -> bool:
        return self.begins_by is not None and time.monotonic() >= self.begins_by

    def ask_to_stop(self, why: str) -> None:
        """Cancel the run, once; the first reason stands."""
        if self.why_stopped is None:
            self.why_stopped = why
            self.asked_at = time.monotonic()
            if self.stop is not None:
                self.stop()

    def report(self, progress: Progress) -> None:
        """Keep the run's progress for the next beat and for the settlement; from any thread."""
        self.progress = progress
        if self.on_report is not None:
            self.on_report()


class Intake(Enum):
    """Whether a lease table takes new leases, and begins those that wait."""

    OPEN = "open"
    ON_TRIAL = "on trial"
    """Not while a quarantine tries jobs that have crashed."""

    OVER = "over"
    """Never again: the session is lost."""


class LeaseTable:
    """Written by the worker's loop, read by its keeper's thread: reads take a copy in one step.

    `on_news` is called, from any thread, when a run has reported progress that no beat has taken yet.
    """

    def __init__(self) -> None:
        self._held: dict[ClaimId, HeldLease] = {}
        self._intake = Intake.OPEN
        self.on_news: Callable[[], None] = lambda: None
        self._has_news = False
        self._on_report = self._note_news  # bound once, not for each holding
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
        """`claimed_at` is when the claim was sent: what the store has said of its time was true after that."""
        begins_by = None if lease.expires_in is None else claimed_at + lease.expires_in
        holding = self._held[lease.claim] = HeldLease(lease, time.monotonic(), begins_by)
        holding.on_report = self._on_report
        return holding

    def remove(self, claims: Iterable[ClaimId]) -> None:
        """Only once the store has answered their settlements, or the leases are lost."""
        for claim in claims:
            self._held.pop(claim, None)
        self.nudge()

    def get(self, claim: ClaimId) -> HeldLease | None:
        return self._held.get(claim)

    def holds(self, holding: HeldLease) -> bool:
        """Return False once it has been answered or lost."""
        return self._held.get(holding.lease.claim) is holding

    def all(self) -> list[HeldLease]:
        return list(self._held.values())

    def held_by(self, run: JobContext) -> HeldLease | None:
        """Return the lease of a run, as long as it is held; from any thread."""
        for holding in self.all():
            if holding.lease.epoch == run.epoch and id_text(holding.lease.envelope.id) == run.job_id:
                return holding
        return None

    def unanswered(self) -> list[HeldLease]:
        """Return those whose settlements were offered, and not answered yet."""
        return [holding for holding in self.all() if holding.is_offered]

    def do_not_end(self, asked_before: float) -> bool:
        """All that is left was asked to stop, by a timeout or a cancellation, before that instant."""
        return all(holding.asked_at is not None and holding.asked_at <= asked_before for holding in self.all())

    # --- waiting ----------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Whoever waits for a change is to look again."""
        self._changed.set()

    async def wait_for_change(self, timeout: float | None = None) -> None:
        """Until a lease has left, a run has ended, or somebody nudges, or `timeout` seconds have passed. Look first, then wait."""
        self._changed.clear()
        if timeout is None:
            await self._changed.wait()
            return
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return

    # --- what beats tell --------------------------------------------------------------------------------

    def claims(self) -> tuple[ClaimId, ...]:
        return tuple(self._held)

    def reports(self) -> tuple[Report, ...]:
        """Report the runs that have begun or reported progress, as far as no beat has carried it."""
        self._has_news = False  # first: what is reported from now on asks for a beat again
        now = time.monotonic()
        reports: list[Report] = []
        for holding in self.all():
            started, progress = holding.started, holding.progress
            if started is not None and holding.reported is not progress:
                reports.append(Report(holding.lease.claim, now - started, progress))
        return tuple(reports)

    def reported(self, reports: Iterable[Report]) -> None:
        """A beat has carried these, or dropped them."""
        for report in reports:
            if (holding := self._held.get(report.claim)) is not None:
                holding.reported = report.progress

    def _note_news(self) -> None:
        if not self._has_news:
            self._has_news = True
            self.on_news()
