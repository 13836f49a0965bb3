"""Reports whether a worker is alive and ready. Any thread may run the checks, even while the event loop is blocked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from taskflow.model.ids import id_text

if TYPE_CHECKING:  # a supervisor, which also imports this module, must stay small
    from taskflow.worker.session import WorkerSession
    from taskflow.worker.watchdog import Watchdog

ANSWER_TIMEOUT: Final = 12.0
"""Seconds without an answer after which the broker is considered unavailable.
This is slightly longer than two intervals between the fetcher's checks for jobs or room."""

WATCHDOG_TIMEOUT: Final = 5.0  # seconds without a check after which the watchdog is considered dead


@dataclass(frozen=True)
class HealthCheck:
    """The result of a health check. `why` is for people, `facts` for programs. A dataclass, so web frameworks can return it as JSON."""

    is_well: bool
    why: str
    facts: dict[str, float | int | str | None] = field(default_factory=dict)


class WorkerHealth:
    def __init__(self, watchdog: Callable[[], Watchdog | None], session: Callable[[], WorkerSession | None], ttl: float) -> None:
        self._watchdog = watchdog
        self._session = session
        self._ttl = ttl
        self.is_winding_down = False

    def live(self) -> HealthCheck:
        """Check the watchdog, the event loop and the heartbeat thread. The broker doesn't count: a restart would not bring it back."""
        watchdog, session, now = self._watchdog(), self._session(), time.monotonic()
        if watchdog is None:
            return HealthCheck(True, self._without_watchdog())
        facts: dict[str, float | int | str | None] = {"stalled_for": round(watchdog.stalled_for, 3)}
        if now - watchdog.checked_at > WATCHDOG_TIMEOUT:
            return HealthCheck(False, f"the watchdog thread has not run for {now - watchdog.checked_at:.0f} s", facts)
        if watchdog.stalled_for:
            blocker = watchdog.blocker
            where = f" in {blocker.envelope.job} {id_text(blocker.envelope.id)}" if blocker else ""
            return HealthCheck(False, f"the event loop has been blocked for {watchdog.stalled_for:.1f} s{where}", facts)
        if session is not None and not session.is_over and now - session.heartbeat.tried_at > self._ttl + WATCHDOG_TIMEOUT:
            return HealthCheck(False, f"the heartbeat thread has not run for {now - session.heartbeat.tried_at:.0f} s", facts)
        return HealthCheck(True, "the event loop and the heartbeat thread are running", facts)

    def ready(self) -> HealthCheck:
        """Check that the worker is alive and that the broker recently answered its heartbeats, claims and settlements."""
        live = self.live()
        if not live.is_well:
            return live
        if self._watchdog() is None:
            return HealthCheck(False, self._without_watchdog())
        if self.is_winding_down:
            return HealthCheck(False, "the worker is winding down and claims no more jobs")
        session = self._session()
        if session is None or session.is_over:
            return HealthCheck(False, "the worker's session has ended, and the next one has not begun")
        return self._check(session, time.monotonic())

    def _without_watchdog(self) -> str:
        return "the worker has ended" if self.is_winding_down else "the worker has not started yet"

    def _check(self, session: WorkerSession, now: float) -> HealthCheck:
        runs = session.runs
        beaten, claimed = _since(session.heartbeat.beaten_at, now), _since(session.fetcher.answered_at, now)
        settling = _since(session.settler.waiting_since, now)
        facts: dict[str, float | int | str | None] = {
            "running": len(runs.under_way),
            "free": runs.free,
            "since_beat": beaten,
            "since_claim": claimed,
            "settling_for": settling or 0.0,
            "left_behind": runs.left_behind,
        }
        if runs.is_stuck:
            return HealthCheck(False, f"no job can start: abandoned functions still occupy all {runs.left_behind} slots", facts)
        if beaten is None or beaten > max(ANSWER_TIMEOUT, self._ttl / 2):
            return HealthCheck(False, _not_for("a heartbeat", beaten), facts)
        # If every slot is occupied, the worker need not claim jobs, but it must still settle the runs when they end.
        full = _since(session.fetcher.full_at, now)
        waited = claimed if claimed is None or full is None else min(claimed, full)
        if waited is None or (runs.free and waited > ANSWER_TIMEOUT):
            return HealthCheck(False, _not_for("a claim", waited), facts)
        if settling is not None and settling > ANSWER_TIMEOUT:
            return HealthCheck(False, _not_for("a settlement", settling), facts)
        return HealthCheck(True, "the broker answers heartbeats, claims and settlements", facts)


def _since(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _not_for(what: str, seconds: float | None) -> str:
    if seconds is None:
        return f"the broker has not answered {what} yet"
    return f"the broker has not answered {what} for {seconds:.0f} s"
