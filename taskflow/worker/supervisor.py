"""Decides when to start, stop and replace worker processes, based on their reports. `Processes` carries out the decisions.

A worker starts, reports that its modules are `loaded`, opens a `session`, and works. Once it has been asked to leave, the next worker may
take its slot. A worker that has run its maximum number of jobs, or has grown too large, retires: it finishes its runs while the next worker
takes its slot. A worker that ends in any other way has crashed. It is replaced at once, or after a pause if crashes continue."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from taskflow.model.pauses import Pauses
from taskflow.worker.children.syscalls import SAME_SIGNAL, ExitStatus

log: Final = logging.getLogger("taskflow.supervisor")

SPACING: Final = 4 * SAME_SIGNAL  # seconds between two signals to a worker, so that it does not treat them as one
# The first worker starts alone, so that an error in the application is reported once. The others wait until it has a session, or until
# this many seconds after it has loaded its modules.
ALONE_TIMEOUT: Final = 2.0
# After the grace period, a worker ends by itself within this many seconds, unless C code holds its interpreter lock.
FORCE_TIMEOUT: Final = 30.0
IDLE: Final = 5.0
# A worker reports every second. If it has been silent for less than this many seconds, it may just have been waiting for a CPU.
MIN_SILENCE: Final = 10.0
EXIT_TIMEOUT: Final = 120.0
"""Seconds that a worker has to exit after its session has left. Python may take
a while to shut down, and so may threads that jobs have left behind."""
KILL_TIMEOUT: Final = 5.0  # seconds that an aborted worker has to write its stacks and exit
FORCED: Final = 124  # the exit code of a worker that cut off runs
ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
# Exit codes of a worker that cannot start: a failed lifespan, an application that cannot be imported, a broker that does not answer.
NO_STARTS: Final = (1, 2, 3)


MIN_HEALTHY_TIME: Final = 30.0  # seconds of work after which a worker counts as healthy, and its earlier crashes no longer count
PAUSES: Final = Pauses(1.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    processes: int = 1  # the number of workers
    grace: float = 25.0  # seconds for a worker's runs to finish when it winds down
    max_memory: int | None = None  # bytes of memory beyond which a worker is replaced
    stall_limit: float = 0.0  # seconds after which a silent worker is ended; 0 disables
    is_draining: bool = False  # True if workers that have drained their queues are not replaced
    is_reloading: bool = False  # True if workers restart when files change; one that cannot start then waits for the next change


@dataclass(eq=False)
class WorkerProcess:
    pid: int
    slot: int
    generation: int
    loaded_at: float | None = None
    waits_for_broker: bool = False
    works_since: float | None = None
    sessions: list[bytes] = field(default_factory=list)
    is_leaving: bool = False  # True if it starts no more runs
    is_retiring: bool = False  # True if its runs have as much time as they need, unless it is signalled
    has_drained: bool = False
    exit_code: int | None = None  # set once its session has left
    signals_sent: int = 0  # the number of signals sent to it
    signalled_at: float = float("-inf")
    heard_at: float = float("inf")
    aborted_at: float | None = None

    def has_worked_for(self, now: float) -> float:
        return 0.0 if self.works_since is None else now - self.works_since


@dataclass(eq=False)
class WorkerSlot:
    """A slot, which workers occupy one after another. `failures` counts consecutive deaths; a healthy worker's death resets it to 1."""

    failures: int = 0
    may_start_at: float = float("-inf")
    has_drained: bool = False
    no_start: ExitStatus | None = None

    def record_death(self, worked_for: float, now: float) -> float:
        """Record a death. Return the seconds until the next worker may start: 0 at first, then 1, 2, 4 and so on up to 30."""
        self.failures = 1 if worked_for >= MIN_HEALTHY_TIME else self.failures + 1
        pause = 0.0 if self.failures == 1 else PAUSES.after(self.failures - 1)
        self.may_start_at = now + pause
        return pause


class RollingRestart:
    """Replaces the workers of generations before `generation`, one by one. Each leaves once its successor is working."""

    def __init__(self, start: Callable[[int], WorkerProcess | None]) -> None:
        self.generation = 0
        self._start = start
        self._is_under_way = False
        self._change: tuple[WorkerProcess, WorkerProcess] | None = None  # the first worker leaves once the second is working

    def begin(self) -> None:
        self.generation += 1
        self._is_under_way = True

    def replace_all(self) -> None:
        """Begin a new generation because all workers restart at once. This ends any rolling restart."""
        self.generation += 1
        self._end()

    def give_up(self, why: str) -> None:
        log.error("giving up the rolling restart; the other workers continue: %s", why)
        self._end()

    def waits_for(self, worker: WorkerProcess) -> bool:
        """Return True if this worker replaces another one, and has not begun to work."""
        return self._change is not None and self._change[1] is worker and worker.works_since is None

    def advance(self, workers: Mapping[int, WorkerProcess]) -> None:
        """Continue the restart, if one is in progress. `workers` maps pids to all workers."""
        if not self._is_under_way:
            return
        if self._change is not None:
            old, successor = self._change
            if successor.works_since is None:
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
            self._change = (stale, new)
        else:
            self.give_up("no process can be started")

    def _end(self) -> None:
        self._is_under_way, self._change = False, None


class ProcessControl(Protocol):
    """The part of `Processes` that a supervisor needs, so that supervisors can be tested without processes."""

    def start(self, slot: int) -> int: ...
    def signal(self, pid: int, number: int) -> None: ...
    def retire(self, pid: int) -> bool: ...
    def record_death(self, session: bytes, cause: str) -> None: ...


class Supervisor:
    """Decides when to start, signal and replace workers. After events, call `act`. `code` is the exit code, None until the end."""

    def __init__(self, options: SupervisorOptions, processes: ProcessControl, clock: Callable[[], float] = time.monotonic) -> None:
        self.code: int | None = None
        self._options = options
        self._processes = processes
        self._clock = clock
        self._workers: dict[int, WorkerProcess] = {}
        self._slots = [WorkerSlot() for _ in range(options.processes)]
        self._restart = RollingRestart(self._start)
        self._has_worked = False
        self._may_crowd = False
        self._stops = 0
        self._stopped_at = float("-inf")
        self._number = 0
        self._codes: list[int] = []

    def stop(self, number: int) -> None:
        """Handle a SIGTERM or SIGINT. The first makes the workers wind down, the second cancels their runs, and the third kills them."""
        now = self._clock()
        if now - self._stopped_at < SAME_SIGNAL:
            return
        self._stopped_at = now
        self._stops += 1
        self._number = number
        name = signal.Signals(number).name
        if self._stops == 1:
            workers = "" if len(self._workers) == 1 else f" {len(self._workers)} workers"
            log.info("%s: winding down%s; a second signal cancels the runs, a third exits at once", name, workers)
        elif self._stops == 2:
            log.warning("%s again: cancelling the runs", name)

    def hang_up(self) -> None:
        """Handle the loss of the terminal. Several SIGHUPs may report it; together they count as the first signal to stop."""
        if not self._stops:
            self.stop(signal.SIGHUP)

    def roll(self) -> None:
        """Replace the workers one by one, unless a signal to stop has arrived. Each is asked to leave once its replacement is working."""
        if self._stops:
            return
        log.info("SIGHUP: replacing the workers one by one")
        self._restart.begin()

    def reload(self) -> None:
        """Replace all workers now. They finish their runs but start no new ones."""
        self._may_crowd = False
        self._restart.replace_all()
        for worker in self._workers.values():
            worker.is_leaving, worker.is_retiring = True, False
        for slot in self._slots:
            slot.no_start, slot.failures, slot.may_start_at = None, 0, float("-inf")

    def record_report(self, pid: int, line: str) -> None:
        """Handle a worker's report: ``loaded``, ``waiting`` (for the broker), ``session ID``, ``retiring``, ``leaving``, ``ended CODE`` or
        ``drained CODE``."""
        worker = self._workers.get(pid)
        if worker is None:
            return
        worker.heard_at = self._clock()
        match line.split():
            case ["loaded"]:
                worker.loaded_at = self._clock()
            case ["waiting"]:
                worker.waits_for_broker = True
            case ["session", session]:
                self._record_session(worker, session)
            case ["retiring"]:
                worker.is_leaving = worker.is_retiring = True
            case ["leaving"]:
                worker.is_leaving = True
                if not worker.signals_sent:  # another program has signalled it
                    worker.signals_sent, worker.signalled_at = 1, self._clock()
            case ["ended" | "drained" as how, code] if code.isdecimal():
                worker.exit_code = int(code)
                worker.has_drained = how == "drained"

    def record_memory(self, pid: int, size: int) -> None:
        """Retire a worker if its memory use, `size` in bytes, exceeds `max_memory`."""
        worker, most = self._workers.get(pid), self._options.max_memory
        if worker is None or worker.is_leaving or worker.works_since is None or most is None or size <= most:
            return
        now = self._clock()
        worked_for = worker.has_worked_for(now)
        log.info("worker %d uses %s of memory, more than %s (--max-memory): another worker takes over", pid, _bytes(size), _bytes(most))
        worker.is_leaving = True
        worker.is_retiring = self._processes.retire(pid)  # False if it could not be asked; `_signal_workers` signals it then
        if pause := self._slots[worker.slot].record_death(worked_for, now):
            log.warning("worker %d worked for only %.0f s, like the previous one; the next one starts in %g s", pid, worked_for, pause)

    def ended(self, pid: int, exit_status: ExitStatus) -> None:
        """Handle the end of a process, which need not be a worker if this is process 1 of a container."""
        worker = self._workers.pop(pid, None)
        if worker is None:
            log.debug("process %d, which is not a worker, has ended: %s", pid, exit_status.cause)
            return
        if worker.exit_code is not None and -exit_status.status in (*ENDS, *([signal.SIGABRT] if worker.aborted_at is not None else ())):
            exit_status = ExitStatus(worker.exit_code)  # the signal arrived while Python was already exiting, or the worker ignored it
        self._record_end(worker, exit_status)
        if worker.exit_code is None:  # even with code 0: a job has ended the process, and with it the other runs
            for session in worker.sessions:
                log.info("jobs of session %s run again; its worker died: %s", session.hex(), exit_status.cause)
                self._processes.record_death(session, exit_status.cause)

    def act(self) -> float:
        """Do everything that is due. Return the seconds until the next call is needed if no event arrives earlier."""
        if not self._stops:
            self._fill_slots()
            if self._may_crowd or not self._staying():  # otherwise it is not known yet whether the application can start
                self._restart.advance(self._workers)
        self._end_the_silent()
        self._signal_workers()
        self._judge()
        return self._until_due()

    def _fill_slots(self) -> None:
        now = self._clock()
        for number, slot in enumerate(self._slots):
            may_start = slot.may_start_at <= now and not slot.has_drained and slot.no_start is None
            if may_start and all(worker.slot != number for worker in self._staying()) and self._may_start():
                self._start(number)

    def _staying(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not worker.is_leaving]

    def _may_start(self) -> bool:
        """Return True if another worker may start. Until it's known that the application starts and the broker answers, only one may."""
        first = self._staying()
        loaded = [worker for worker in first if not worker.waits_for_broker]
        if any(worker.loaded_at is not None and worker.loaded_at + ALONE_TIMEOUT <= self._clock() for worker in loaded):
            self._may_crowd = True
        return self._may_crowd or not (first or any(slot.no_start for slot in self._slots))

    def _start(self, number: int) -> WorkerProcess | None:
        try:
            pid = self._processes.start(number)
        except OSError as error:
            pause = max(1.0, self._slots[number].record_death(0.0, self._clock()))
            self._slots[number].may_start_at = self._clock() + pause
            log.error("cannot start a worker, trying again in %g s: %s", pause, error)
            return None
        self._workers[pid] = worker = WorkerProcess(pid, number, self._restart.generation)
        log.info("worker %d started, process %d of %d", pid, number + 1, self._options.processes)
        return worker

    def _end_the_silent(self) -> None:
        """End workers that are silent, because C code can block even their watchdogs, and workers that do not exit after their session."""
        now = self._clock()
        for worker in self._workers.values():
            limit = max(self._options.stall_limit, MIN_SILENCE) if self._options.stall_limit else math.inf
            limit = limit if worker.exit_code is None else EXIT_TIMEOUT
            if worker.works_since is None or now < worker.heard_at + limit:
                continue
            if worker.aborted_at is None:
                worker.aborted_at = now
                if worker.exit_code is None:
                    log.error(
                        "worker %d has been silent for %g s: C code is holding the interpreter lock; ending the worker", worker.pid, limit
                    )
                else:
                    log.error("worker %d has finished but did not exit within %g s: killing it", worker.pid, limit)
                self._processes.signal(worker.pid, signal.SIGABRT)
            elif now >= worker.aborted_at + KILL_TIMEOUT:
                self._processes.signal(worker.pid, signal.SIGKILL)

    def _signal_workers(self) -> None:
        now = self._clock()
        for worker in self._workers.values():
            wanted = max(self._stops, int(worker.is_leaving and not worker.is_retiring))
            if wanted > 2 or (worker.signals_sent and now >= self._forced_at(worker)):
                self._processes.signal(worker.pid, signal.SIGKILL)
            elif worker.exit_code is None and worker.signals_sent < wanted and now >= worker.signalled_at + SPACING:
                worker.signals_sent += 1
                worker.signalled_at = now
                # While a worker is loading Python, a SIGINT would look like an error in taskflow.
                is_interrupt = self._number == signal.SIGINT and worker.loaded_at is not None
                self._processes.signal(worker.pid, signal.SIGINT if is_interrupt else signal.SIGTERM)

    def _forced_at(self, worker: WorkerProcess) -> float:
        return worker.signalled_at + FORCE_TIMEOUT + (self._options.grace if worker.signals_sent == 1 else 0.0)

    def _until_due(self) -> float:
        now = self._clock()
        dues = [now + IDLE, *(slot.may_start_at for slot in self._slots)]
        for worker in self._workers.values():
            if worker.loaded_at is not None and not worker.waits_for_broker:
                dues.append(worker.loaded_at + ALONE_TIMEOUT)
            if worker.signals_sent:
                dues += (worker.signalled_at + SPACING, self._forced_at(worker))
        return min(at for at in dues if at > now) - now

    def _record_session(self, worker: WorkerProcess, session: str) -> None:
        try:
            worker.sessions.append(bytes.fromhex(session))
        except ValueError:  # a job has written to one of taskflow's file descriptors
            return
        if worker.works_since is None:
            worker.works_since = self._clock()
            self._has_worked = self._may_crowd = True
            if not self._options.is_reloading:
                for slot in self._slots:  # workers that could not start before may do so now
                    slot.no_start = None

    def _record_end(self, worker: WorkerProcess, exit_status: ExitStatus) -> None:
        slot = self._slots[worker.slot]
        if worker.has_drained:
            slot.has_drained = True
            self._codes.append(exit_status.code)
        elif self._stops:
            self._record_stopped(worker, exit_status)
        elif worker.is_leaving:
            self._record_left(worker, exit_status)
        elif self._restart.waits_for(worker):
            self._restart.give_up(f"the new worker {worker.pid} did not start ({exit_status.cause})")
        elif worker.works_since is None and exit_status.status in NO_STARTS and (self._options.is_reloading or not self._has_worked):
            slot.no_start = exit_status
            if self._options.is_reloading:
                log.error("the application cannot start (%s): waiting for a file to change", exit_status.cause)
        else:
            pause = slot.record_death(worker.has_worked_for(self._clock()), self._clock())
            when = f"in {pause:g} s" if pause else "now"
            log.error("worker %d has ended: %s; another worker starts %s", worker.pid, exit_status.cause, when)

    def _record_stopped(self, worker: WorkerProcess, exit_status: ExitStatus) -> None:
        """Record the exit code, unless this worker was still starting while others had already worked."""
        if worker.works_since is not None or not self._has_worked:
            by_us = worker.works_since is None and exit_status.code == 128 + signal.SIGTERM
            self._codes.append(128 + self._number if by_us or self._stops > 2 else exit_status.code)

    def _record_left(self, worker: WorkerProcess, exit_status: ExitStatus) -> None:
        if self._options.is_draining and exit_status.status == 1:
            self._codes.append(exit_status.code)
        if worker.works_since is None or (worker.exit_code is not None and exit_status.code != FORCED):
            log.info("worker %d has wound down", worker.pid)
        else:
            log.warning("worker %d died while it wound down: %s", worker.pid, exit_status.cause)

    def _judge(self) -> None:
        """Once all workers have ended for good, set `code` to their highest exit code. After a third signal, or if a signal arrived
        before any had worked, set `code` to that signal's exit code."""
        if self._workers:
            return
        failed = [slot.no_start.code for slot in self._slots if slot.no_start is not None]
        if self._stops:
            unworked = 0 if self._has_worked else 128 + self._number
            self.code = max(self._codes, default=unworked) if self._stops < 3 else 128 + self._number
        elif all(slot.has_drained for slot in self._slots):
            self.code = max(self._codes)
        elif failed and not self._options.is_reloading and (not self._may_crowd or len(failed) == len(self._slots)):
            self.code = max(failed)


def _bytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
