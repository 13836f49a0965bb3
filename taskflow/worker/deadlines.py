"""When runs have had their time: one table and one timer for all of them, since a timer for each costs more than the run."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from typing import Final

from taskflow.worker.lease_table import HeldLease

SWEPT_EVERY: Final = 0.01
"""Seconds between two looks through the table at the least: so late a run may be told, and so cheap are ten thousand that run long."""


class Deadlines:
    """Of the runs in one event loop. `on_due` is told of each whose deadline has passed, once."""

    def __init__(self, on_due: Callable[[HeldLease], None]) -> None:
        self._on_due = on_due
        self._due_at: dict[HeldLease, float] = {}
        self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, holding: HeldLease, seconds: float) -> None:
        """From now on."""
        loop = asyncio.get_running_loop()
        due_at = self._due_at[holding] = loop.time() + seconds
        if due_at < self._looks_at:
            self._look_at(loop, due_at)

    def remove(self, holding: HeldLease) -> None:
        """The timer stays as it is: the next run will most likely want it no sooner."""
        self._due_at.pop(holding, None)

    def _look_at(self, loop: asyncio.AbstractEventLoop, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = instant
        # A context of its own: that of the run would be kept, with all that its variables hold, long after the run has ended.
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
