"""Reports runs that go on after they were asked to stop: a thread, or a job that swallows its cancellation. They would go unnoticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from taskflow.worker.events import Events, StillRunning
from taskflow.worker.lease_table import HeldLease

RARER: Final = 10
"""A run is reported again when it has taken this many times as long."""

SHORTEST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0


class Watch:
    """Checks all of `runs()` every few seconds. `patience` is the time in seconds that a run has to stop before it is reported.

    `nudge` is called at each check, so that the fetcher looks for free slots, and vitals can tell.
    """

    def __init__(self, runs: Callable[[], Iterable[HeldLease]], patience: float, events: Events, nudge: Callable[[], None]) -> None:
        self._runs = runs
        self._patience = max(SHORTEST_PAUSE, patience)
        self._events = events
        self._nudge = nudge

    async def run(self) -> None:
        while True:
            await asyncio.sleep(min(LONGEST_PAUSE, self._patience))
            self._look(time.monotonic())
            self._nudge()

    def _look(self, now: float) -> None:
        for holding in self._runs():
            if holding.asked_at is not None and now - holding.asked_at >= self._patience * RARER**holding.reminders:
                holding.reminders += 1
                tell_of(holding, now, self._events)


def tell_of(holding: HeldLease, now: float, events: Events) -> None:
    """Report a run that was asked to stop and should have stopped by now."""
    if holding.asked_at is not None and holding.why_stopped is not None:
        events.tell(StillRunning(holding.lease, now - holding.asked_at, holding.why_stopped))
