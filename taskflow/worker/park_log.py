"""Limits log lines about parked jobs to one per job name and interval, however many jobs of that name are parked."""

from __future__ import annotations

from typing import Final

INTERVAL: Final = 60.0
"""Minimum seconds between two lines about the same job name."""

MOST_NAMES: Final = 1_000
"""The maximum number of job names that are counted separately; all further names share one line."""


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
        since, unsaid = self._names.get(name, (now - INTERVAL, 0))
        if now - since < INTERVAL:
            self._names[name] = since, unsaid + 1
            return None
        self._names[name] = now, 0
        if not name:
            # Forget names whose last line is older than an interval. Jobs that are still parked return within 5 minutes.
            self._names = {name: (since, unsaid) for name, (since, unsaid) in self._names.items() if now - since < INTERVAL}
        return unsaid
