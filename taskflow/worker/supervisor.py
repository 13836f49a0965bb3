"""Decides which worker processes there should be, from reports and from the time. A `ProcessControl` carries the decisions out.

A worker starts, says that its modules are `loaded`, opens a `session`, and works. It leaves when it is told to; its place is another's
from then on. One that has run as many jobs as it may, or has grown too large, retires: its place is another's too, and it has all the time
that its runs take. What ends otherwise has crashed, and is replaced after a pause.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from taskflow.worker.children.system import SAME_SIGNAL
from taskflow.worker.endings import Ending
from taskflow.worker.supervisor_state import Plan, Replacement, WorkerProcess, WorkerSlot

log: Final = logging.getLogger("taskflow.supervisor")

# So far apart are a worker's signals, which must not be taken for one.
SPACING: Final = 4 * SAME_SIGNAL
# The first worker starts alone, so that what is wrong with the application is said once. The others wait for its session, or, when that
# takes long, for so many seconds after its modules were loaded.
LOADED_PATIENCE: Final = 2.0
# After the grace time a worker ends by itself, by force if it must. One that has not done so by then has lost its interpreter.
FORCED_AFTER: Final = 30.0
IDLE: Final = 5.0
SILENT_AFTER: Final = 10.0
"""Seconds. A worker says how it is every second; one that has said nothing for less than this may have waited for a processor."""
GONE_WITHIN: Final = 120.0
"""Seconds that a worker whose session has left has to be gone: Python may take its time to end, and what jobs have left behind as well."""
KILLED_AFTER: Final = 5.0
"""Seconds that an aborted worker has to show its stacks, and to be gone."""
DOUBTED_AFTER: Final = 60.0
MANY_RETIRING: Final = 3
# The exit code of a worker whose runs had to be cut off.
FORCED: Final = 124
ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
# What a worker that cannot start ends with by itself: a failed lifespan, an application that cannot be imported, a broker that is away.
NO_STARTS: Final = (1, 2, 3)

OnCrash = Callable[[bytes, str], None]
"""Told of a session (its id) whose process has ended without leaving, and by what: "SIGSEGV", "exit code 7", "out of memory (SIGKILL)"."""


def log_crash(session: bytes, cause: str) -> None:
    log.info("what session %s held runs again; lost by: %s", session.hex(), cause)


class ProcessControl(Protocol):
    def start(self, slot: int) -> int:
        """A new worker process; its pid. OSError when the system has none to give."""
        ...

    def signal(self, pid: int, number: int) -> None:
        """To a process that may have ended already."""
        ...

    def retire(self, pid: int) -> bool:
        """Tell a worker to claim nothing more, and to end when what it runs has ended. False when it cannot be told."""
        ...

    def is_stopped(self, pid: int) -> bool:
        """Whether a signal, or a debugger, keeps it from going on for the time being."""
        ...


class Supervisor:
    """Tell it what happens, then let it `act`, which says how long it may be left alone. Over when `code` is no longer None."""

    def __init__(
        self, plan: Plan, processes: ProcessControl, on_crash: OnCrash = log_crash, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.code: int | None = None
        self._plan = plan
        self._processes = processes
        self._on_crash = on_crash
        self._clock = clock
        self._workers: dict[int, WorkerProcess] = {}
        self._slots = [WorkerSlot() for _ in range(plan.processes)]
        self._generation = 0
        self._is_rolling = False
        self._change: Replacement | None = None
        self._has_worked = False
        self._may_crowd = False
        self._stops = 0
        self._stopped_at = float("-inf")
        self._number = 0
        self._codes: list[int] = []

    # --- what is told ------------------------------------------------------------------------------------

    def stop(self, number: int) -> None:
        """By a SIGTERM or a SIGINT: the first winds down, the second cancels what runs, the third ends all at once."""
        now = self._clock()
        if now - self._stopped_at < SAME_SIGNAL:
            return
        self._stopped_at = now
        self._stops += 1
        self._number = number
        name = signal.Signals(number).name
        if self._stops == 1:
            log.info("%s: %s; once more cancels what runs, a third time ends at once", name, _winding_down(len(self._workers)))
        elif self._stops == 2:
            log.warning("%s again: cancelling what runs", name)

    def hang_up(self) -> None:
        """The terminal is gone, of which several SIGHUPs may tell: together they are a first signal, and no more."""
        if not self._stops:
            self.stop(signal.SIGHUP)

    def roll(self) -> None:
        """Replace every worker, one by one, each when the next one works already."""
        if self._stops:
            return
        log.info("SIGHUP: the workers are replaced, one by one")
        self._generation += 1
        self._is_rolling = True

    def reload(self) -> None:
        """Replace every worker now: what runs finishes where it runs, and nothing new starts there."""
        self._generation += 1
        self._may_crowd = self._is_rolling = False
        self._change = None
        for worker in self._workers.values():
            worker.is_leaving, worker.is_retiring = True, False
        for slot in self._slots:
            slot.no_start, slot.failures, slot.may_start_at = None, 0, float("-inf")

    def heard(self, pid: int, line: str) -> None:
        """What a worker has said: ``loaded``, ``session ID``, ``retiring``, ``leaving``, ``ended CODE``, ``drained CODE``."""
        worker = self._workers.get(pid)
        if worker is None:
            return
        worker.heard_at = self._clock()
        match line.split():
            case ["loaded"]:
                worker.loaded_at = self._clock()
            case ["session", session]:
                self._note_session(worker, session)
            case ["retiring"]:
                self._note_retiring(worker)
            case ["leaving"]:
                self._note_leaving(worker)
            case ["ended" | "drained" as how, code] if code.isdecimal():
                worker.exit_code = int(code)
                worker.has_drained = how == "drained"

    def weighed(self, pid: int, size: int) -> None:
        """A worker has so many bytes of memory."""
        worker, most = self._workers.get(pid), self._plan.max_memory
        if worker is None or worker.is_leaving or worker.works_since is None or most is None or size <= most:
            return
        now = self._clock()
        worked_for = worker.has_worked_for(now)
        log.info("worker %d has %s of memory, more than %s (--max-memory): another one takes over", pid, _bytes(size), _bytes(most))
        worker.is_leaving = True
        worker.is_retiring = self._processes.retire(pid)  # else it is signalled
        if pause := self._slots[worker.slot].note_death(worked_for, now):
            log.warning("it had worked for %.0f s only, and so had the one before: the next starts in %g s", worked_for, pause)

    def ended(self, pid: int, ending: Ending) -> None:
        """A process has ended. Those that are no workers are of no concern: as process 1 of a container one reaps whatever ends there."""
        worker = self._workers.pop(pid, None)
        if worker is None:
            log.debug("process %d, no worker, has ended: %s", pid, ending.cause)
            return
        if worker.exit_code is not None and -ending.status in (*ENDS, *([signal.SIGABRT] if worker.aborted_at is not None else ())):
            ending = Ending(worker.exit_code)  # it came while Python was ending already, or did not want to
        self._note_end(worker, ending)
        if worker.exit_code is None:  # also with 0: a job has ended it, and what it held
            for session in worker.sessions:
                self._on_crash(session, ending.cause)

    # --- what is done ------------------------------------------------------------------------------------

    def act(self) -> float:
        """Does what is due. Seconds until there may be more to do, should nothing be told before."""
        if not self._stops:
            self._fill_slots()
            self._roll_on()
        self._end_the_silent()
        self._tell_workers()
        self._judge()
        return self._until_due()

    def _fill_slots(self) -> None:
        now = self._clock()
        for number, slot in enumerate(self._slots):
            if self._is_vacant(number) and slot.may_start_at <= now and self._may_start():
                self._start(number)

    def _is_vacant(self, number: int) -> bool:
        slot = self._slots[number]
        return not slot.has_drained and slot.no_start is None and not any(worker.slot == number for worker in self._staying())

    def _staying(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not worker.is_leaving]

    def _may_start(self) -> bool:
        """One, while it is not known whether the application can be started at all; then as many as there are to be."""
        first = self._staying()
        if any(worker.loaded_at is not None and worker.loaded_at + LOADED_PATIENCE <= self._clock() for worker in first):
            self._may_crowd = True
        return self._may_crowd or not (first or any(slot.no_start for slot in self._slots))

    def _start(self, number: int) -> WorkerProcess | None:
        try:
            pid = self._processes.start(number)
        except OSError as error:
            pause = max(1.0, self._slots[number].note_death(0.0, self._clock()))
            self._slots[number].may_start_at = self._clock() + pause
            log.error("no worker can be started now, and it is tried again in %g s: %s", pause, error)
            return None
        self._workers[pid] = worker = WorkerProcess(pid, number, self._generation)
        log.info("worker %d starts, process %d of %d", pid, number + 1, self._plan.processes)
        return worker

    def _roll_on(self) -> None:
        """Not before it is known whether the application can be started."""
        if not self._is_rolling or (not self._may_crowd and self._staying()):
            return
        if (change := self._change) is not None:
            self._doubt(change)
            if change.new.works_since is not None:
                change.old.is_leaving, change.old.is_retiring = True, False
            if change.old.pid in self._workers or change.new.works_since is None:
                return
            self._change = None
        stale = next((worker for worker in self._staying() if worker.generation < self._generation), None)
        if stale is None:
            self._is_rolling = False
            log.info("every worker has been replaced")
        elif (new := self._start(stale.slot)) is not None:
            self._change = Replacement(stale, new, self._clock())
        else:
            self._give_up_rolling("there is no process for it")

    def _doubt(self, change: Replacement) -> None:
        """It may have much to load. It may as well wait for what never comes."""
        if change.new.works_since is None and not change.is_doubted and self._clock() >= change.began_at + DOUBTED_AFTER:
            change.is_doubted = True
            log.warning(
                "worker %d has not begun to work for %g s (it imports the application, or starts its lifespan): the replacing of workers "
                "waits for it; to give that up, end it",
                change.new.pid,
                DOUBTED_AFTER,
            )

    def _end_the_silent(self) -> None:
        """C code that never lets go of the interpreter keeps all in its process from ending it: the watch over the event loop as well."""
        now = self._clock()
        for worker in self._workers.values():
            limit = self._silent_for(worker)
            if worker.works_since is None or now < worker.heard_at + limit:
                continue
            if self._processes.is_stopped(worker.pid):
                worker.heard_at = now
            elif worker.aborted_at is None:
                worker.aborted_at = now
                if worker.exit_code is None:
                    log.error("worker %d has said nothing for %g s: C code keeps its interpreter; it is ended", worker.pid, limit)
                else:
                    log.error("worker %d has come to its end, and is not gone after %g s: it is ended by force", worker.pid, limit)
                self._processes.signal(worker.pid, signal.SIGABRT)
            elif now >= worker.aborted_at + KILLED_AFTER:
                self._processes.signal(worker.pid, signal.SIGKILL)

    def _silent_for(self, worker: WorkerProcess) -> float:
        """Seconds that it may say nothing: one that has come to its end has nothing more to say."""
        if worker.exit_code is not None:
            return GONE_WITHIN
        return max(self._plan.stall_limit, SILENT_AFTER) if self._plan.stall_limit else math.inf

    def _tell_workers(self) -> None:
        now = self._clock()
        for worker in self._workers.values():
            wanted = max(self._stops, int(worker.is_leaving and not worker.is_retiring))
            if wanted > 2 or (worker.signals_sent and now >= self._forced_at(worker)):
                self._processes.signal(worker.pid, signal.SIGKILL)
            elif worker.exit_code is None and worker.signals_sent < wanted and now >= worker.signalled_at + SPACING:
                worker.signals_sent += 1
                worker.signalled_at = now
                self._processes.signal(worker.pid, self._signal_for(worker))

    def _signal_for(self, worker: WorkerProcess) -> int:
        """Theirs are two. While Python is loaded a SIGINT would be shown as an error of ours."""
        return signal.SIGINT if self._number == signal.SIGINT and worker.loaded_at is not None else signal.SIGTERM

    def _forced_at(self, worker: WorkerProcess) -> float:
        return worker.signalled_at + FORCED_AFTER + (self._plan.grace if worker.signals_sent == 1 else 0.0)

    def _until_due(self) -> float:
        now = self._clock()
        return max(0.0, min((at for at in self._dues() if at > now), default=now + IDLE) - now)

    def _dues(self) -> Iterator[float]:
        yield self._clock() + IDLE
        for slot in self._slots:
            yield slot.may_start_at
        for worker in self._workers.values():
            if worker.loaded_at is not None:
                yield worker.loaded_at + LOADED_PATIENCE
            if worker.signals_sent:
                yield worker.signalled_at + SPACING
                yield self._forced_at(worker)

    # --- what it comes to --------------------------------------------------------------------------------

    def _note_session(self, worker: WorkerProcess, session: str) -> None:
        try:
            worker.sessions.append(bytes.fromhex(session))
        except ValueError:  # a job has written into a descriptor that is not its own
            return
        if worker.works_since is None:
            worker.works_since = self._clock()
            self._has_worked = self._may_crowd = True
            if not self._plan.is_reloading:
                for slot in self._slots:  # what could not be started at first may be now
                    slot.no_start = None

    def _note_retiring(self, worker: WorkerProcess) -> None:
        worker.is_leaving = worker.is_retiring = True
        retiring = sum(each.slot == worker.slot and each.is_retiring for each in self._workers.values())
        if retiring >= MANY_RETIRING:
            log.warning("%d workers of process %d have been replaced and go on with what they run", retiring, worker.slot + 1)

    def _note_leaving(self, worker: WorkerProcess) -> None:
        """Somebody else may have told it to."""
        worker.is_leaving = True
        if not worker.signals_sent:
            worker.signals_sent, worker.signalled_at = 1, self._clock()

    def _note_end(self, worker: WorkerProcess, ending: Ending) -> None:
        slot = self._slots[worker.slot]
        if worker.has_drained:
            slot.has_drained = True
            self._codes.append(ending.code)
        elif self._stops:
            self._note_stopped(worker, ending)
        elif worker.is_leaving:
            self._note_left(worker, ending)
        elif self._change is not None and self._change.new is worker and worker.works_since is None:
            self._give_up_rolling(f"the new worker {worker.pid} could not start ({ending.cause})")
        elif worker.works_since is None and ending.status in NO_STARTS and (self._plan.is_reloading or not self._has_worked):
            slot.no_start = ending
            if self._plan.is_reloading:
                log.error("the application cannot be started (%s): waiting for the next change of a file", ending.cause)
        else:
            pause = slot.note_death(worker.has_worked_for(self._clock()), self._clock())
            when = f"in {pause:g} s" if pause else "now"
            log.error("worker %d has ended: %s; another one starts %s", worker.pid, ending.cause, when)

    def _note_stopped(self, worker: WorkerProcess, ending: Ending) -> None:
        """One that was about to start when others worked already has been told that it need not."""
        if worker.works_since is not None or not self._has_worked:
            by_us = worker.works_since is None and ending.code == 128 + signal.SIGTERM
            self._codes.append(128 + self._number if by_us or self._stops > 2 else ending.code)

    def _note_left(self, worker: WorkerProcess, ending: Ending) -> None:
        if self._plan.is_draining and ending.status == 1:
            self._codes.append(ending.code)
        if worker.works_since is None or (worker.exit_code is not None and ending.code != FORCED):
            log.info("worker %d has wound down", worker.pid)
        else:
            log.warning("worker %d has ended while it wound down: %s", worker.pid, ending.cause)

    def _give_up_rolling(self, why: str) -> None:
        log.error("the replacing of workers is given up, the others go on as they are: %s", why)
        self._is_rolling, self._change = False, None

    def _judge(self) -> None:
        """The worst of the workers' codes is ours. Where none has ever worked, a signal has cut us short."""
        if self._workers:
            return
        failed = [slot.no_start.code for slot in self._slots if slot.no_start is not None]
        if self._stops:
            unworked = 0 if self._has_worked else 128 + self._number
            self.code = max(self._codes, default=unworked) if self._stops < 3 else 128 + self._number
        elif all(slot.has_drained for slot in self._slots):
            self.code = max(self._codes)
        elif failed and not self._plan.is_reloading and (not self._may_crowd or len(failed) == len(self._slots)):
            self.code = max(failed)


def _winding_down(workers: int) -> str:
    return "winding down" if workers == 1 else f"winding down {workers} workers"


def _bytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
