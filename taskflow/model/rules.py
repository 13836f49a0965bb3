"""The limits and times of the protocol. All workers of a fleet share them; tests shorten them."""

from __future__ import annotations

from typing import Final

import msgspec

DAY: Final = 86_400.0
LONGEST: Final = 100 * 365.25 * DAY
"""The longest time that anything waits or is kept, in seconds: stores hold instants in 64 bits of microseconds."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and counts that a broker decides by.

    `session_ttl`       a session that has not beaten for so long may be reaped
    `ghost_after`       a lease that its session does not know is given back when it is older than this
    `max_crashes`       a job whose lease was lost more often than this, without an outcome between, is poison
    `crash_backoff`     the wait after the first, second, ... crash; the last one goes on
    `hand_back_backoff` the wait after the first, second, ... hand-back without an outcome between; the last one goes on
    `repeat_for`        how long an ended job's id and fence stay known, so that a resent call is harmless
    `keep_failed`       how long a failed job is kept
    `keep_cancelled`    how long a cancelled job is kept
    `kept_per_queue`    ended, and apart from them failed, jobs kept in a queue; the oldest go first
    `upkeep_every`      upkeep of the whole fleet, when nothing falls due before: seldom enough for an idle worker to send less than
                        one command a second, often enough for a dead one's jobs to run again within 25 s
    """

    session_ttl: float = 20.0
    ghost_after: float = 10.0
    max_crashes: int = 3
    crash_backoff: tuple[float, ...] = (0.0, 5.0, 30.0, 300.0)
    hand_back_backoff: tuple[float, ...] = (*(0.0,) * 9, 5.0, 30.0, 300.0)
    repeat_for: float = 120.0
    keep_failed: float = 30 * DAY
    keep_cancelled: float = 300.0
    kept_per_queue: int = 100_000
    upkeep_every: float = 2.0

    def crash_wait(self, crashes: int) -> float:
        """Seconds before the next run, after so many crashes in a row (at least one)."""
        return self.crash_backoff[min(crashes, len(self.crash_backoff)) - 1]

    def hand_back_wait(self, hand_backs: int) -> float:
        """Seconds before the next run, after so many hand-backs in a row (at least one)."""
        return self.hand_back_backoff[min(hand_backs, len(self.hand_back_backoff)) - 1]
