"""The state of a supervisor: its options, its workers and their slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from taskflow.model.retry import Pauses
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
