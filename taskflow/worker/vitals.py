"""Reports whether a worker is alive and ready. Any thread may ask, even while the event loop is blocked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from taskflow.model.envelope import Lease
from taskflow.model.ids import id_text

LATE: Final = 12.0
"""Seconds without an answer after which the broker is considered unavailable.
This is slightly longer than two of the fetcher's checks for jobs or room."""

BLIND: Final = 5.0
"""Seconds without a check after which the watchdog is considered dead."""


class Signs(NamedTuple):
    """The signs of life of one session. Times are on the monotonic clock, or None if there is none yet. `free` and `running` count slots.

    `beaten_at`, `claimed_at`  the broker's last answer to a heartbeat and to a claim
    `full_at`                  the last time that there was no room for more leases, which is checked every few seconds
    `tried_at`                 the last attempt to send a heartbeat
    `settling_since`           the time since which a verdict has been waiting for its settlement
    `left_behind`              the number of threads whose functions were abandoned
    `is_stuck`                 True if such threads occupy every slot
    `is_over`                  True if the session is winding down or has ended
    """

    running: int
    free: int
    beaten_at: float | None
    tried_at: float
    claimed_at: float | None
    full_at: float | None
    settling_since: float | None
    left_behind: int
    is_stuck: bool
    is_over: bool


@dataclass(frozen=True)
class VitalSign:
    """The result of a health check. `why` is for people, and `facts` (numbers and text)
    for programs. It is a dataclass because web frameworks can return one directly."""

    is_well: bool
    why: str
    facts: dict[str, float | int | str | None] = field(default_factory=dict)


class Seen(Protocol):
    """The observations of the watchdog; see `Watchdog`."""

    @property
    def stalled_for(self) -> float: ...
    @property
    def looked_at(self) -> float: ...
    @property
    def blocker(self) -> Lease | None: ...


class Vitals:
    """Checks whether a worker is alive and ready. `seen` returns the worker's watchdog, or None before
    its start and after its end. `signs` returns the signs of the current session, or None between two."""

    def __init__(self, seen: Callable[[], Seen | None], signs: Callable[[], Signs | None], ttl: float) -> None:
        self._seen = seen
        self._signs = signs
        self._ttl = ttl
        self.is_winding_down = False

    def live(self) -> VitalSign:
        """Return whether the event loop and the heartbeat thread are running. The state of the
        broker is ignored, because restarting the process would not bring the broker back."""
        seen, signs, now = self._seen(), self._signs(), time.monotonic()
        if seen is None:
            return VitalSign(True, self._without_watch())
        facts: dict[str, float | int | str | None] = {"stalled_for": round(seen.stalled_for, 3)}
        if now - seen.looked_at > BLIND:
            return VitalSign(False, f"the watchdog thread has not run for {now - seen.looked_at:.0f} s", facts)
        if seen.stalled_for:
            where = f" in {_name(seen.blocker)}" if seen.blocker else ""
            return VitalSign(False, f"the event loop has been blocked for {seen.stalled_for:.1f} s{where}", facts)
        if signs is not None and not signs.is_over and now - signs.tried_at > self._ttl + BLIND:
            return VitalSign(False, f"the heartbeat thread has not run for {now - signs.tried_at:.0f} s", facts)
        return VitalSign(True, "the event loop and the heartbeat thread are running", facts)

    def ready(self) -> VitalSign:
        """Return whether the worker is alive and the broker has recently answered its heartbeats, claims and settlements."""
        live = self.live()
        if not live.is_well:
            return live
        if self._seen() is None:
            return VitalSign(False, self._without_watch())
        if self.is_winding_down:
            return VitalSign(False, "the worker winds down and claims nothing more")
        signs = self._signs()
        if signs is None or signs.is_over:
            return VitalSign(False, "the worker's session has ended, and the next one has not begun")
        return self._of(signs, time.monotonic())

    def _without_watch(self) -> str:
        return "the worker has ended" if self.is_winding_down else "the worker has not started yet"

    def _of(self, signs: Signs, now: float) -> VitalSign:
        beaten, claimed = _since(signs.beaten_at, now), _since(signs.claimed_at, now)
        settling = _since(signs.settling_since, now)
        facts: dict[str, float | int | str | None] = {
            "running": signs.running,
            "free": signs.free,
            "since_beat": beaten,
            "since_claim": claimed,
            "settling_for": settling or 0.0,
            "left_behind": signs.left_behind,
        }
        if signs.is_stuck:
            return VitalSign(False, f"no job can start: functions that were given up still run in all {signs.left_behind} slots", facts)
        if beaten is None or beaten > max(LATE, self._ttl / 2):
            return VitalSign(False, _not_for("a heartbeat", beaten), facts)
        # With every slot taken, the worker need not claim, but the runs must be settled when they end.
        full = _since(signs.full_at, now)
        waited = claimed if claimed is None or full is None else min(claimed, full)
        if waited is None or (signs.free and waited > LATE):
            return VitalSign(False, _not_for("a claim", waited), facts)
        if settling is not None and settling > LATE:
            return VitalSign(False, _not_for("a settlement", settling), facts)
        return VitalSign(True, "the broker answers heartbeats, claims and settlements", facts)


def _since(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _not_for(what: str, seconds: float | None) -> str:
    if seconds is None:
        return f"the broker has not answered {what} yet"
    return f"the broker has not answered {what} for {seconds:.0f} s"


def _name(lease: Lease) -> str:
    return f"{lease.envelope.job} {id_text(lease.envelope.id)}"
