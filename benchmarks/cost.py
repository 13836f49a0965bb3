"""What a server has spent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Since the server was started: seconds of CPU, and how often it was spoken to."""

    cpu: float
    trips: float

    def since(self, earlier: Cost) -> Cost:
        return Cost(self.cpu - earlier.cpu, self.trips - earlier.trips)
