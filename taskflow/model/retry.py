"""The pauses between tries of a call to a store or another process. (A job's own back-off is in backoff.py.)"""

from __future__ import annotations

from collections.abc import Callable

STEEPEST = 60
"""Doublings after which every pause has reached its maximum. Without this limit a float overflows after 1,024 failures."""


class Pauses:
    """Bounded exponential pauses, in seconds: `first`, then twice as long after each failure, up to `longest`.

    This module imports neither taskflow, asyncio nor msgspec, because the supervisor loads it too.
    """

    __slots__ = ("first", "longest")

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest

    def after(self, failures: int) -> float:
        """Return the pause after `failures` failures in a row, 1 or more."""
        return min(self.longest, self.first * 2.0 ** min(max(failures, 1) - 1, STEEPEST))

    def at_most(self, longest: float) -> Pauses:
        """Return the same pauses with another upper bound, if that is lower."""
        return Pauses(self.first, min(self.longest, longest))


class Retries:
    """Counts the failures in a row of one call, and returns the pause after each. `draw` spreads pauses over 50 % to 150 % of their
    length."""

    __slots__ = ("_draw", "_pauses", "failures")

    def __init__(self, pauses: Pauses, draw: Callable[[], float] | None = None) -> None:
        self.failures = 0
        self._pauses = pauses
        self._draw = draw

    def failed(self) -> float:
        """Count a failure; return the seconds to wait before the next try."""
        self.failures += 1
        pause = self._pauses.after(self.failures)
        return pause if self._draw is None else pause * (0.5 + self._draw())

    def succeeded(self) -> bool:
        """Begin again with the first pause. Return True if the call had failed before."""
        had_failed, self.failures = self.failures > 0, 0
        return had_failed
