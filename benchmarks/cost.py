"""The CPU time and round trips of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """A server's CPU time in seconds and its number of round trips, since it was started."""

    cpu: float
    trips: float

    def since(self, earlier: Cost) -> Cost:
        return Cost(self.cpu - earlier.cpu, self.trips - earlier.trips)
