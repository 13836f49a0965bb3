"""Calculates a job's back-off: the wait before its next attempt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import msgspec

from taskflow.model.printable import shown
from taskflow.model.rules import DAY, LONGEST
from taskflow.model.seams import Chance

RetryFunction: TypeAlias = Callable[[int, Exception], float | timedelta | None]
"""A job's own back-off: from the number of the attempt that failed, starting at 1, and its exception to the wait before the next one, or
None for no other attempt."""


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential back-off with full jitter: ``uniform(0, min(max, base * factor ** failures))`` seconds.

    `failures` is 0 for the first retry. Full jitter spreads simultaneous retries over the whole span
    ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). With ``jitter=False`` the wait is the full span.
    """

    base: float = 1.0
    factor: float = 2.0
    max: float = DAY
    jitter: bool = True

    def __post_init__(self) -> None:
        """Check the fields and convert numbers to floats, which every store can write. Raises TypeError or ValueError, naming a field."""
        for name in ("base", "factor", "max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Backoff({name}={shown(value)}): expected a number")
            if not 0 <= value <= sys.float_info.max:  # false for NaN
                raise ValueError(f"Backoff({name}={shown(value)}): expected a finite number, 0 or more")
            msgspec.structs.force_setattr(self, name, float(value))
        if not isinstance(self.jitter, bool):
            raise TypeError(f"Backoff(jitter={shown(self.jitter)}): expected True or False")

    def span(self, failures: int) -> float:
        """Return the longest possible wait in seconds, given the number of earlier failures."""
        if not self.base:
            return 0.0
        try:
            return min(self.max, LONGEST, self.base * self.factor**failures)
        except OverflowError:
            return min(self.max, LONGEST)

    def wait(self, failures: int, chance: Chance) -> float:
        """Return how many seconds to wait before the next attempt. With jitter, this is random."""
        span = self.span(failures)
        return span * chance.random() if self.jitter else span
