"""The options of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.marks import A_DOUBLE
from benchmarks.peers.rivals import NO_PEERS, Rivals


@dataclass(frozen=True)
class Options:
    """Options of workloads; None means the workload's default. `share` is the share of the usual jobs, and `under` PostgreSQL's folder."""

    repeats: int = 3
    share: float = 1.0
    peers: Rivals = NO_PEERS
    under: Path | None = None
    jobs: int | None = None
    rate: float | None = None
    minutes: float = 15.0
    on: str | None = None

    def of(self, jobs: int) -> int:
        """Return this run's share of the jobs, rounded to a number for which marks can be aligned."""
        return max(A_DOUBLE, int(self.share * jobs) // A_DOUBLE * A_DOUBLE)
