"""The pauses between attempts to call a store or another process. (The back-off of a job is in backoff.py.)"""

from __future__ import annotations

from collections.abc import Callable

STEEPEST = 60
"""The number of doublings after which every pause has reached its maximum. Without a limit, a float overflows after 1,024 failures."""


class Pauses:
    """Exponential pauses in seconds: `first`, then twice as long after each failure, up to `longest`.

    This module imports neither asyncio nor msgspec nor other parts of taskflow, because the supervisor loads it too.
    """

    __slots__ = ("first", "longest")

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest

    def after(self, failures: int) -> float:
        """Return the pause after `failures` failures in a row, 1 or more."""
        return min(self.longest, self.first * 2.0 ** min(max(failures, 1) - 1, STEEPEST))

    def at_most(self, longest: float) -> Pauses:
        """Return the same pauses with the upper bound `longest`, if that is lower."""
        return Pauses(self.first, min(self.longest, longest))


class Retries:
    """Counts consecutive failures of a call, and returns the pause after each. `draw` varies pauses between 50 % and 150 %."""

    __slots__ = ("_draw", "_pauses", "failures")

    def __init__(self, pauses: Pauses, draw: Callable[[], float] | None = None) -> None:
        self.failures = 0
        self._pauses = pauses
        self._draw = draw

    def failed(self) -> float:
        """Count a failure. Return the seconds to wait before the next attempt."""
        self.failures += 1
        pause = self._pauses.after(self.failures)
        return pause if self._draw is None else pause * (0.5 + self._draw())

    def succeeded(self) -> bool:
        """Start again with the first pause. Return True if the call had failed before."""
        had_failed, self.failures = self.failures > 0, 0
        return had_failed
