"""Enforces the timeouts of runs with one shared table and timer, because a timer for each would cost more than a short run."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from typing import Final

from taskflow.worker.lease_table import HeldLease

SWEPT_EVERY: Final = 0.01
"""Minimum seconds between two scans. A timeout may be noticed that much later, but even ten thousand long runs cost little."""


class Deadlines:
    """The deadlines of the runs in one event loop. `on_due` is called once for each run whose deadline has passed."""

    def __init__(self, on_due: Callable[[HeldLease], None]) -> None:
        self._on_due = on_due
        self._due_at: dict[HeldLease, float] = {}
        self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, holding: HeldLease, seconds: float) -> None:
        """Set the run's deadline to `seconds` from now."""
        loop = asyncio.get_running_loop()
        due_at = self._due_at[holding] = loop.time() + seconds
        if due_at < self._looks_at:
            self._look_at(loop, due_at)

    def remove(self, holding: HeldLease) -> None:
        """Remove the run's deadline. The timer stays, because the next run is unlikely to need an earlier one."""
        self._due_at.pop(holding, None)

    def _look_at(self, loop: asyncio.AbstractEventLoop, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = instant
        # Without a separate context, the timer would keep the run's context variables long after the run has ended.
        self._timer = loop.call_at(instant, self._look, context=contextvars.Context())

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer, self._looks_at = None, math.inf
        for holding in [holding for holding, due_at in self._due_at.items() if due_at <= now]:
            self.remove(holding)
            self._on_due(holding)
        if self._due_at:
            self._look_at(loop, max(now + SWEPT_EVERY, min(self._due_at.values())))
