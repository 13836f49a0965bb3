"""Pauses between attempts to call a store or another process. (The back-off of jobs is in rules.py.)"""

from __future__ import annotations

from collections.abc import Callable

STEEPEST = 60
"""The maximum number of doublings, by which every pause has reached its maximum. Without this cap, a float overflows at 1,024 failures."""


class Pauses:
    """Exponential pauses in seconds. The first pause lasts `first`, and each further failure doubles the pause, up to `longest`.

    This module does not import asyncio, msgspec or other parts of taskflow, because the supervisor loads it too.
    """

    __slots__ = ("first", "longest")

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest

    def after(self, failures: int) -> float:
        """Return the pause in seconds after `failures` failures in a row."""
        return min(self.longest, self.first * 2.0 ** min(max(failures, 1) - 1, STEEPEST))

    def at_most(self, longest: float) -> Pauses:
        """Return the same pauses, capped at `longest`."""
        return Pauses(self.first, min(self.longest, longest))


class Retries:
    """Counts the consecutive failures of a call, and returns the pause after each. `draw` returns a random number from 0 to 1: if it is
    given, each pause varies between 50 % and 150 % of its length."""

    __slots__ = ("_draw", "_pauses", "failures")

    def __init__(self, pauses: Pauses, draw: Callable[[], float] | None = None) -> None:
        self.failures = 0
        self._pauses = pauses
        self._draw = draw

    def failed(self) -> float:
        """Count a failure, and return how many seconds to wait before the next attempt."""
        self.failures += 1
        pause = self._pauses.after(self.failures)
        return pause if self._draw is None else pause * (0.5 + self._draw())

    def succeeded(self) -> bool:
        """Reset the count after a success. Return True if the call had been failing."""
        had_failed, self.failures = self.failures > 0, 0
        return had_failed
