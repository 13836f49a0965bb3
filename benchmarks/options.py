"""What a run of workloads is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.marks import A_DOUBLE
from benchmarks.peers.rivals import NO_PEERS, Rivals


@dataclass(frozen=True)
class Options:
    """`share` of the usual jobs, for quick runs; `under` the folder, of a disk, for PostgreSQL's data; None: the workload's own."""

    repeats: int = 3
    share: float = 1.0
    peers: Rivals = NO_PEERS
    under: Path | None = None
    jobs: int | None = None
    rate: float | None = None
    minutes: float = 15.0

    def of(self, jobs: int) -> int:
        """That share of so many, as marks can be kept of."""
        return max(A_DOUBLE, int(self.share * jobs) // A_DOUBLE * A_DOUBLE)
