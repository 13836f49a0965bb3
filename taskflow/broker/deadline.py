"""A deadline for operations that repeat often and are rarely late."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

BLOCKED: Final = 0.05
"""If the timer fires this many seconds late, the loop was blocked, and the answer
may have arrived unread. The deadline is then extended once, by this many seconds."""


class Deadline:
    """Guards one operation at a time, in the event loop that created it. Calls `late` if the operation takes too long.

    One timer serves many operations: if it fires too early, it is set again. Setting
    and cancelling a timer for each operation would cost as much as sending a command.
    """

    __slots__ = ("_due_at", "_is_extended", "_late", "_looks_at", "_loop", "_timer")

    def __init__(self, late: Callable[[], None]) -> None:
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._due_at = self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._is_extended = False

    def begin(self, seconds: float) -> None:
        """Start an operation that may take `seconds`."""
        due_at = self._due_at = self._loop.time() + seconds
        self._is_extended = False
        if due_at < self._looks_at:
            self._look_at(due_at)

    def end(self) -> None:
        self._due_at = math.inf

    def drop(self) -> None:
        """Stop guarding the current operation, if there is one, and cancel the timer."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._looks_at = None, math.inf

    def _look_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = instant
        self._timer = self._loop.call_at(instant, self._look)

    def _look(self) -> None:
        looked_at = self._looks_at
        self._timer, self._looks_at = None, math.inf
        if self._due_at <= looked_at and not self._is_extended and (now := self._loop.time()) > looked_at + BLOCKED:
            self._is_extended, self._due_at = True, now + BLOCKED
        if self._due_at <= looked_at:
            self.end()
            self._late()
        elif self._due_at < math.inf:
            self._look_at(self._due_at)
