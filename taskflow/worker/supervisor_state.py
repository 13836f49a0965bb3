"""The state of a supervisor: its options, its workers and their slots, and a rolling restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from taskflow.model.pauses import Pauses
from taskflow.worker.exit_status import ExitStatus

# Seconds of work after which a worker counts as healthy, and its earlier crashes no longer count.
HEALTHY_AFTER: Final = 30.0
PAUSES: Final = Pauses(1.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    """The options of a supervisor.

    `processes`     the number of workers
    `grace`         seconds for a worker's runs to finish when it winds down
    `max_memory`    bytes of memory beyond which a worker is replaced
    `stall_limit`   seconds after which a silent worker is ended; 0 disables
    `is_draining`   True if workers that have drained their queues are not replaced
    `is_reloading`  True if workers restart when files change; one that cannot start then waits for the next change
    """

    processes: int = 1
    grace: float = 25.0
    max_memory: int | None = None
    stall_limit: float = 0.0
    is_draining: bool = False
    is_reloading: bool = False


@dataclass(eq=False)
class WorkerProcess:
    """The state of a worker process.

    `signals_sent`  the number of signals sent to it
    `exit_code`     set once its session has left
    `is_leaving`    True if it starts no more runs
    `is_retiring`   True if its runs have as much time as they need, unless it is signalled
    """

    pid: int
    slot: int
    generation: int
    loaded_at: float | None = None
    waits_for_broker: bool = False
    works_since: float | None = None
    sessions: list[bytes] = field(default_factory=list)
    is_leaving: bool = False
    is_retiring: bool = False
    has_drained: bool = False
    exit_code: int | None = None
    signals_sent: int = 0
    signalled_at: float = float("-inf")
    heard_at: float = float("inf")
    aborted_at: float | None = None

    def has_worked_for(self, now: float) -> float:
        return 0.0 if self.works_since is None else now - self.works_since


@dataclass(eq=False)
class WorkerSlot:
    """The slot of one of the workers, occupied by a process and then its successors.
    `failures` counts consecutive deaths of workers that were not healthy."""

    failures: int = 0
    may_start_at: float = float("-inf")
    has_drained: bool = False
    no_start: ExitStatus | None = None

    def note_death(self, worked_for: float, now: float) -> float:
        """Record a death. Return the seconds until the next worker may start: 0 at first, then 1, 2, 4 and so on."""
        self.failures = 1 if worked_for >= HEALTHY_AFTER else self.failures + 1
        pause = 0.0 if self.failures == 1 else PAUSES.after(self.failures - 1)
        self.may_start_at = now + pause
        return pause


log: Final = logging.getLogger("taskflow.supervisor")

SLOW_START_WARNING: Final = 60.0


class RollingRestart:
    """Replaces the workers one by one. Each is asked to leave once its replacement is working. `generation` counts the restarts: workers
    that were started in an earlier one are to be replaced."""

    def __init__(self, start: Callable[[int], WorkerProcess | None], clock: Callable[[], float]) -> None:
        self.generation = 0
        self._start = start
        self._clock = clock
        self._is_under_way = False
        self._change: tuple[WorkerProcess, WorkerProcess] | None = None  # the first leaves once the second is working
        self._doubt_at = 0.0

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
        return self._change is not None and self._change[1] is worker and worker.works_since is None

    def advance(self, workers: Mapping[int, WorkerProcess]) -> None:
        """Continue the restart, if one is in progress. `workers` are all workers by their pids."""
        if not self._is_under_way:
            return
        if self._change is not None:
            old, successor = self._change
            if successor.works_since is None:
                self._doubt(successor)
                return
            old.is_leaving, old.is_retiring = True, False
            if old.pid in workers:
                return
            self._change = None
        stale = next((worker for worker in workers.values() if not worker.is_leaving and worker.generation < self.generation), None)
        if stale is None:
            self._is_under_way = False
            log.info("all workers have been replaced")
        elif (new := self._start(stale.slot)) is not None:
            self._change, self._doubt_at = (stale, new), self._clock() + SLOW_START_WARNING
        else:
            self.give_up("no process can be started")

    def _doubt(self, new: WorkerProcess) -> None:
        """Warn once if the new worker is slow to start work: it may be waiting for something that will never happen."""
        if self._clock() >= self._doubt_at:
            self._doubt_at = float("inf")
            log.warning(
                "worker %d has not begun to work within %g s (it imports the application, or starts its lifespan): the rolling restart "
                "waits for it; to cancel the restart, end this worker",
                new.pid,
                SLOW_START_WARNING,
            )

    def _end(self) -> None:
        self._is_under_way, self._change = False, None
