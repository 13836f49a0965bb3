"""Limits log lines about parked jobs to one per job name and interval, however many jobs of that name are parked."""

from __future__ import annotations

from typing import Final

INTERVAL: Final = 60.0
"""Minimum seconds between two lines about the same job name."""

MOST_NAMES: Final = 1_000
"""The maximum number of job names that are counted separately; all others share one line."""


class ParkLog:
    """Decides which parked runs are logged. Each line also reports how
    many runs of that job were parked without a line since the last one."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[float, int]] = {}

    def count(self, name: str, now: float) -> int | None:
        """Return how many runs of this job were parked without a line since the last one, or None if this run gets no line either."""
        if name not in self._names and len(self._names) >= MOST_NAMES:
            name = ""
        since, unsaid = self._names.get(name, (now - INTERVAL, 0))
        if now - since < INTERVAL:
            self._names[name] = since, unsaid + 1
            return None
        self._names[name] = now, 0
        if not name:
            # Forget names whose last line is older than an interval. Jobs that are still parked return within 5 minutes.
            self._names = {name: (since, unsaid) for name, (since, unsaid) in self._names.items() if now - since < INTERVAL}
        return unsaid
