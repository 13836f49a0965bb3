"""What a worker holds: every lease from its claim to its settlement's answer. The beat speaks from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.record import Progress
from taskflow.model.session import Report


class Holding:
    """One lease. `why_stopped` says why its run is being cancelled, once it is; `is_offered` that its settlement is on its way.

    `started` and `asked_at` are of the monotonic clock; `reminders` counts how often it was told that the run has not stopped.
    """

    __slots__ = ("asked_at", "is_offered", "lease", "progress", "reminders", "started", "stop", "why_stopped")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.started: float | None = None
        self.progress: Progress | None = None
        self.stop: Callable[[], None] | None = None
        self.why_stopped: str | None = None
        self.asked_at: float | None = None
        self.reminders = 0
        self.is_offered = False

    def ask_to_stop(self, why: str) -> None:
        """Cancel the run, once; the first reason stands."""
        if self.why_stopped is None:
            self.why_stopped = why
            self.asked_at = time.monotonic()
            if self.stop is not None:
                self.stop()


class Holdings:
    """Written by the worker's loop, read by its keeper's thread: reads take a copy in one step.

    While it `is_closed` it has room for nothing new.
    """

    def __init__(self, slots: int) -> None:
        self._held: dict[ClaimId, Holding] = {}
        self._slots = slots
        self.is_closed = False
        self._changed = asyncio.Event()
        self._reported: dict[ClaimId, object] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def free(self) -> int:
        return 0 if self.is_closed else max(0, self._slots - len(self._held))

    def add(self, lease: Lease) -> Holding:
        holding = self._held[lease.claim] = Holding(lease)
        return holding

    def remove(self, claim: ClaimId) -> None:
        """Only once the store has answered its settlement, or the lease is lost."""
        self._held.pop(claim, None)
        self._reported.pop(claim, None)
        self.nudge()

    def nudge(self) -> None:
        """Whoever waits for a change is to look again."""
        self._changed.set()

    async def wait_for_change(self, timeout: float | None = None) -> None:
        """Until a lease has left, or somebody nudges, or `timeout` seconds have passed."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return

    def get(self, claim: ClaimId) -> Holding | None:
        return self._held.get(claim)

    def all(self) -> list[Holding]:
        return list(self._held.values())

    def claims(self) -> tuple[ClaimId, ...]:
        return tuple(self._held)

    def reports(self) -> tuple[Report, ...]:
        """Of runs that have begun, or said something new, since the last reports."""
        now = time.monotonic()
        reports: list[Report] = []
        for claim, holding in list(self._held.items()):
            if holding.started is not None and self._reported.get(claim, self) is not holding.progress:
                self._reported[claim] = holding.progress
                reports.append(Report(claim, now - holding.started, holding.progress))
        return tuple(reports)
