"""Isolates jobs that have crashed: they run apart from all others. The last run of each
either killed its worker, or ran alongside the one that did; it is not known which.

If the guilty job ran among others, it would take them down each time, and they would count as crashed as often as it does.
So suspects run separately: a few at a time after their first crash, then one at a time, those with the fewest crashes first.

Before a trial, runs that have started are given time to end. All other leases are handed back, so that they are not lost with the worker.
Nothing is claimed until the jobs on trial have survived for a period that grows with the number of crashes. If one more crash would make
a job poison, it has the worker to itself for its whole run, up to a limit. If it then kills the worker, no other job is blamed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from taskflow.model.envelope import Lease
from taskflow.worker.events import Events, QuarantineStarted
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.runs import Runs


class Trial(NamedTuple):
    """How suspects are tried.

    `together`     the number of jobs that run at the same time
    `probation`    seconds after which other jobs may start alongside them
    `until_alone`  seconds to wait for earlier runs to end and for the store to take back other leases. Runs that continue share the risk
    """

    together: int
    probation: float
    until_alone: float


TRIALS: Final = {
    # This clears most of a hundred neighbours of the guilty job in seconds, because a job that kills its worker usually does so at once.
    1: Trial(10, 0.5, 2.0),
    # The job may run out of memory after a while.
    2: Trial(1, 10.0, 10.0),
}
LAST: Final = Trial(1, 300.0, 30.0)


class Quarantine:
    """Holds the leases of suspects until they are tried or handed back."""

    def __init__(self, lease_table: LeaseTable, runs: Runs, events: Events) -> None:
        self._lease_table = lease_table
        self._runs = runs
        self._events = events
        self._waiting: list[HeldLease] = []
        self._chosen: list[HeldLease] = []
        self._has_some = asyncio.Event()

    def add(self, lease: Lease, claimed_at: float) -> None:
        self._waiting.append(self._lease_table.add(lease, claimed_at))
        self._lease_table.set_trial(True)
        self._has_some.set()

    def take_all(self) -> list[HeldLease]:
        """Remove and return the leases that have not started."""
        taken = self._held([*self._chosen, *self._waiting])
        self._chosen, self._waiting = [], []
        return taken

    async def run(self) -> None:
        while True:
            await self._has_some.wait()
            if (trial := self._choose()) is not None:
                alone_by = time.monotonic() + trial.until_alone
                while (self._runs.under_way or len(self._lease_table) > len(self._chosen)) and (left := alone_by - time.monotonic()) > 0:
                    await self._lease_table.wait_for_change(left)
                chosen, self._chosen = self._held(self._chosen), []
                for holding in chosen:
                    self._events.emit(QuarantineStarted(holding.lease, trial.probation))
                if runs := [self._runs.begin(holding) for holding in chosen]:
                    await asyncio.wait(runs, timeout=trial.probation)
            if not self._waiting:
                self._has_some.clear()
                self._lease_table.set_trial(False)

    def _choose(self) -> Trial | None:
        """Choose the leases to try now, and hand back the rest. If other code cancels `run`, it starts again with a new choice."""
        waiting = sorted(self.take_all(), key=_crashes)
        if not waiting:
            return None
        trial = TRIALS.get(_crashes(waiting[0]), LAST)
        self._chosen = [holding for holding in waiting[: trial.together] if _crashes(holding) == _crashes(waiting[0])]
        for holding in waiting[len(self._chosen) :]:
            self._runs.give_back(holding)
        return trial

    def _held(self, waiting: list[HeldLease]) -> list[HeldLease]:
        """Return the leases that are still held; the others were lost."""
        return [holding for holding in waiting if self._lease_table.holds(holding)]


def _crashes(holding: HeldLease) -> int:
    return holding.lease.crashes
