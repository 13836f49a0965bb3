"""The protocol's limits and timings, which are the same for all workers of a fleet, and the back-off of jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeAlias

import msgspec

from taskflow.model.clock import Chance
from taskflow.model.printable import shown

DAY: Final = 86_400.0
MAX_DURATION: Final = 100 * 365.25 * DAY
"""The longest time, in seconds, that anything may wait or be kept. Stores keep times as 64-bit microseconds."""


def seconds_of(name: str, value: object) -> float:
    """Convert a number or a timedelta to seconds, up to a hundred years. Raises TypeError or ValueError, naming the option."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name}={shown(value)}: expected seconds, as a number or a timedelta")
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f"{name}={shown(value)}: expected 0 to {MAX_DURATION:,.0f} seconds, a hundred years")
    return float(seconds)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The durations (in seconds) and counts that a broker applies.

    `session_ttl`       how long a session may go without a heartbeat before it can be reaped
    `ghost_after`       how old a lease must be before its job returns to the queue because the session's heartbeats do not list it
    `max_crashes`       how many times a job may crash, without an outcome in between; one more crash makes it poison
    `crash_backoff`     the wait after the first, second, ... crash; the last value repeats
    `hand_back_backoff` the wait after the first, second, ... hand-back without an outcome in between; the last value repeats
    `repeat_for`        how long an ended job's id and fence are remembered, so that a resent call does no harm
    `keep_failed`       how long a failed job is kept
    `keep_cancelled`    how long a cancelled job is kept
    `keep_asleep`       how long a declared schedule is kept after the last session that declared it has ended
    `kept_per_queue`    how many failed jobs, and separately how many other ended jobs, each queue keeps; the oldest are dropped first
    `max_ends`          how many job endings the store keeps for workers with `ended` hooks; the oldest are dropped, and the drops counted
    `max_actions`       how many operator actions the audit log keeps
    `upkeep_every`      how often upkeep runs, across the whole fleet, while nothing is due. By default, an idle worker sends fewer
                        than one command a second, and a dead worker's jobs run again within 25 s
    """

    session_ttl: float = 20.0
    ghost_after: float = 10.0
    max_crashes: int = 3
    crash_backoff: tuple[float, ...] = (0.0, 5.0, 30.0, 300.0)
    hand_back_backoff: tuple[float, ...] = (*(0.0,) * 9, 5.0, 30.0, 300.0)
    repeat_for: float = 120.0
    keep_failed: float = 30 * DAY
    keep_cancelled: float = 300.0
    keep_asleep: float = 30 * DAY
    kept_per_queue: int = 100_000
    max_ends: int = 10_000
    max_actions: int = 10_000
    upkeep_every: float = 2.0

    @property
    def max_poison_crashes(self) -> int:
        """The number of crashes after which a poison job ends even if no worker has sent its follow-up."""
        return 2 * self.max_crashes + 1

    def crash_wait(self, crashes: int) -> float:
        """Return how many seconds a job waits after `crashes` crashes in a row (at least one)."""
        return self.crash_backoff[min(crashes, len(self.crash_backoff)) - 1]

    def hand_back_wait(self, hand_backs: int) -> float:
        """Return how many seconds a job waits after `hand_backs` hand-backs in a row (at least one)."""
        return self.hand_back_backoff[min(hand_backs, len(self.hand_back_backoff)) - 1]


RetryFunction: TypeAlias = Callable[[int, Exception], float | timedelta | None]
"""A job's custom back-off: takes the number of the failed attempt, starting at 1, and its exception. Returns the wait before the next
attempt, or None to fail the job."""


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
            return min(self.max, MAX_DURATION, self.base * self.factor**failures)
        except OverflowError:
            return min(self.max, MAX_DURATION)

    def wait(self, failures: int, chance: Chance) -> float:
        """Return how many seconds to wait before the next attempt. With jitter, this is random."""
        span = self.span(failures)
        return span * chance.random() if self.jitter else span
