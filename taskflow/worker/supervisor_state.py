"""The state of a supervisor: its plan, its workers, their places and the replacements under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from taskflow.model.retry import Pauses
from taskflow.worker.endings import Ending

# A worker that has worked for so many seconds was healthy: its crashes before do not count any more.
HEALTHY_AFTER: Final = 30.0
PAUSES: Final = Pauses(1.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`processes`     how many are to work
    `grace`         seconds that a worker's runs have when it winds down
    `max_memory`    bytes; a worker that has more is replaced
    `stall_limit`   seconds after which a worker that has said nothing is ended; 0 for never
    `is_draining`   a worker that has drained its queues is not replaced
    `is_reloading`  what cannot start waits for the next change of a file
    """

    processes: int = 1
    grace: float = 25.0
    max_memory: int | None = None
    stall_limit: float = 0.0
    is_draining: bool = False
    is_reloading: bool = False


@dataclass(eq=False)
class WorkerProcess:
    """A process. `told`: how many signals it has got; `exit_code`: its exit code, once its session has left. One that `is_leaving` starts
    nothing new; when it `is_retiring` it has all the time it wants for what it runs, unless it is signalled."""

    pid: int
    slot: int
    generation: int
    loaded_at: float | None = None
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
    """Where one worker after another works. `failures`: deaths one after the other, none of them in good health."""

    failures: int = 0
    may_start_at: float = float("-inf")
    has_drained: bool = False
    no_start: Ending | None = None

    def note_death(self, worked_for: float, now: float) -> float:
        """Seconds until the next may start: none, then 1, 2, 4 and so on."""
        self.failures = 1 if worked_for >= HEALTHY_AFTER else self.failures + 1
        pause = 0.0 if self.failures == 1 else PAUSES.after(self.failures - 1)
        self.may_start_at = now + pause
        return pause


@dataclass(eq=False)
class Replacement:
    """One worker of a rolling restart: `new` works before `old` is told to leave, and the next change waits for its end."""

    old: WorkerProcess
    new: WorkerProcess
    began_at: float
    is_doubted: bool = False
