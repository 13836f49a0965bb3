"""Limits log lines: one for each interval and name of a parked job, and one record for the crash of a child process."""

from __future__ import annotations

from typing import Final

from taskflow.model.envelope import ClaimId, Lease
from taskflow.worker.events import ChildPrinted

PARK_INTERVAL: Final = 60.0
"""Minimum seconds between two lines about the same job name."""

MOST_NAMES: Final = 1_000
"""The maximum number of job names that are counted separately; all further names share one line."""

CRASH_BEGINNING: Final = "Fatal Python error: "
"""The beginning of what Python's fault handler prints when a process crashes."""

MOST_HELD: Final = 500


class ParkLog:
    """Decides which parked runs are logged. Each line also reports how many runs
    of the same job were parked, but not logged, since the previous line."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[float, int]] = {}

    def count(self, name: str, now: float) -> int | None:
        """Record a parked run. Return None if it is not to be logged. Otherwise, return how
        many runs of the same job were parked, but not logged, since its previous line."""
        if name not in self._names and len(self._names) >= MOST_NAMES:
            name = ""
        since, unsaid = self._names.get(name, (now - PARK_INTERVAL, 0))
        if now - since < PARK_INTERVAL:
            self._names[name] = since, unsaid + 1
            return None
        self._names[name] = now, 0
        if not name:
            # Forget names whose last line is older than an interval. Jobs that are still parked return within 5 minutes.
            self._names = {name: (since, unsaid) for name, (since, unsaid) in self._names.items() if now - since < PARK_INTERVAL}
        return unsaid


class CrashLines:
    """Holds back what a child process prints while it crashes, until its run has ended. The error that ends the run contains it, too."""

    def __init__(self) -> None:
        self.held: dict[ClaimId, list[ChildPrinted]] = {}

    def holds(self, event: ChildPrinted, lease: Lease) -> bool:
        """Return True if the line is held back: it, or an earlier one of the same run, begins a crash."""
        lines = self.held.get(lease.claim)
        if lines is None:
            if event.stream != "stderr" or not event.line.startswith(CRASH_BEGINNING):
                return False
            lines = self.held[lease.claim] = []
        if event.stream != "stderr" or len(lines) >= MOST_HELD:
            return False
        lines.append(event)
        return True

    def release(self, lease: Lease) -> list[ChildPrinted]:
        """Return the lines that were held back for a run that has ended."""
        return self.held.pop(lease.claim, [])
