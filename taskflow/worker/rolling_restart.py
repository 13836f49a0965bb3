"""Replaces the workers of a supervisor one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from taskflow.worker.supervisor_state import WorkerProcess

log: Final = logging.getLogger("taskflow.supervisor")

DOUBTED_AFTER: Final = 60.0


class RollingRestart:
    """Replaces the workers one by one. Each is asked to leave once its replacement is working. `start` starts a worker in a slot,
    or returns None. `generation` counts the restarts: workers that were started in an earlier one are to be replaced."""

    def __init__(self, start: Callable[[int], WorkerProcess | None], clock: Callable[[], float]) -> None:
        self.generation = 0
        self._start = start
        self._clock = clock
        self._is_under_way = False
        self._change: _Replacement | None = None

    def begin(self) -> None:
        self.generation += 1
        self._is_under_way = True

    def replace_all(self) -> None:
        """Count a restart of all workers at once, which ends the rolling one."""
        self.generation += 1
        self._end()

    def give_up(self, why: str) -> None:
        log.error("giving up the rolling restart; the other workers continue: %s", why)
        self._end()

    def waits_for(self, worker: WorkerProcess) -> bool:
        """Return True if this worker replaces another one, and has not begun to work."""
        return self._change is not None and self._change.new is worker and worker.works_since is None

    def advance(self, workers: Mapping[int, WorkerProcess]) -> None:
        """Continue the restart, if one is in progress. `workers` are all workers by their pids."""
        if not self._is_under_way:
            return
        if (change := self._change) is not None:
            self._doubt(change)
            if change.new.works_since is not None:
                change.old.is_leaving, change.old.is_retiring = True, False
            if change.old.pid in workers or change.new.works_since is None:
                return
            self._change = None
        stale = next((worker for worker in workers.values() if not worker.is_leaving and worker.generation < self.generation), None)
        if stale is None:
            self._is_under_way = False
            log.info("all workers have been replaced")
        elif (new := self._start(stale.slot)) is not None:
            self._change = _Replacement(stale, new, self._clock())
        else:
            self.give_up("no process can be started")

    def _doubt(self, change: _Replacement) -> None:
        """Warn once if the new worker is slow to start work. It may have a lot to load, or be waiting for something that will never
        happen."""
        if change.new.works_since is None and not change.is_doubted and self._clock() >= change.began_at + DOUBTED_AFTER:
            change.is_doubted = True
            log.warning(
                "worker %d has not begun to work within %g s (it imports the application, or starts its lifespan): the rolling restart "
                "waits for it; to cancel the restart, end this worker",
                change.new.pid,
                DOUBTED_AFTER,
            )

    def _end(self) -> None:
        self._is_under_way, self._change = False, None


@dataclass(eq=False)
class _Replacement:
    """One step of a rolling restart. `old` is asked to leave once `new` is working, and the next step begins when `old` has ended."""

    old: WorkerProcess
    new: WorkerProcess
    began_at: float
    is_doubted: bool = False
