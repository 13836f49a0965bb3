"""Watches the worker's event loop and its heartbeat from a separate thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from taskflow.app.context import JobContext
from taskflow.model.clock import StartThread
from taskflow.model.envelope import Lease
from taskflow.worker import stacks
from taskflow.worker.events import (
    CpuStarved,
    Events,
    InterpreterBlocked,
    InterpreterContended,
    LoopResumed,
    LoopStalled,
    StalledForGood,
    WorkerEvent,
)
from taskflow.worker.lease_table import HeldLease

LOOK: Final = 0.25
FIRST_REPORT: Final = 1.0
REPORT_FACTOR: Final = 10
"""A stall is reported again each time its duration has grown by this factor."""

LEAST_SHARE: Final = 0.1
"""Threads compete for the interpreter lock if they get at least this share of a CPU. The rest may go to other processes."""

TURNS: Final = 10.0
"""A thread that waits for the interpreter lock has more turns on a CPU than this in each second, because it asks for the lock about
every 5 ms. A thread that is blocked, for example in `time.sleep`, has none, and so has one of a stopped process."""

LOCK_LOOK: Final = 0.2

EMIT_WITHIN: Final = 2.0
"""Seconds to wait for the subscribers. They may hang, for example if the loop is blocked in the log that they write to."""


class Standstill:
    """Measures how long a value has stayed the same.

    Each check adds at most twice the usual interval, so that time in which the watching thread did not run hardly counts.
    Otherwise, a stopped process or C code that holds the interpreter lock would look like a blocked event loop.
    """

    def __init__(self, read: Callable[[], object]) -> None:
        self._read = read
        self._seen = read()
        self.seconds = 0.0

    def look(self, passed: float) -> bool:
        """Read the value, `passed` seconds after the last check. Return True if it has changed."""
        seen = self._read()
        if seen != self._seen:
            self._seen, self.seconds = seen, 0.0
            return True
        self.seconds += min(passed, 2 * LOOK)
        return False


class WatchdogTarget(Protocol):
    """The interface through which the watchdog uses the sessions of a worker. The watchdog calls it from its own thread."""

    @property
    def slow(self) -> tuple[HeldLease, float] | None:
        """The last slow run, and when it ended."""
        ...

    @property
    def beats(self) -> object:
        """A value that changes with every answered heartbeat and with every new session."""
        ...

    def holding_of(self, run: JobContext) -> HeldLease | None:
        """Return the lease of a run, or None if it is no longer held."""
        ...

    def note_silence(self) -> None:
        """Handle a heartbeat thread that has fallen silent: the watchdog has seen no heartbeat for longer than the ttl."""
        ...

    def give_up(self, *, is_delivered: bool) -> None:
        """Handle an event loop that is blocked for good. `is_delivered` is True if the subscribers received the event in time."""
        ...


class Watchdog:
    """Watches the event loop in which it was created. Its thread never logs and never waits for the loop, so neither can block it.

    `stall_limit`  how many seconds the loop may make no progress before `watched.give_up` is called; 0 means no limit
    `ttl`          the sessions' ttl in seconds
    `stalled_for`  how many seconds the loop has made no progress; 0.0 until that has been reported
    `looked_at`    when the loop was last checked, on the monotonic clock; shows that the watchdog itself is running
    `blocker`      the lease of the job that was reported as blocking the loop
    """

    def __init__(self, watched: WatchdogTarget, events: Events, start_thread: StartThread, *, stall_limit: float, ttl: float) -> None:
        self._events = events
        self._start_thread = start_thread
        self._watched = watched
        self._stall_limit = stall_limit
        self._ttl = ttl
        self._loop = asyncio.get_running_loop()
        self._thread, self._native_id = threading.get_ident(), threading.get_native_id()
        self._stopping = threading.Event()
        self._ticks = 0
        self._loops = Standstill(lambda: self._ticks)
        self._beats = Standstill(lambda: watched.beats)
        self._times_reported = 0
        self._has_given_up = False
        self._computed = self._computed_at_tick = dict[int, float]()
        self._waited, self._turns = 0.0, 0
        self.looked_at = time.monotonic()
        self.blocker: Lease | None = None

    @property
    def stalled_for(self) -> float:
        return self._loops.seconds if self._times_reported else 0.0

    def start(self) -> None:
        self._tick()
        self.looked_at, self._computed = _clocks()
        self._computed_at_tick = self._computed
        self._start_thread(self._watch, "taskflow-watchdog")

    def stop(self) -> None:
        self._stopping.set()
        self._timer.cancel()

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = self._loop.call_later(LOOK, self._tick)

    # --- in its thread ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK):
            now, computed = _clocks()
            passed, self.looked_at = now - self.looked_at, now
            before, self._computed = self._computed, computed
            waited_before, self._waited = self._waited, stacks.waited_for_processor()
            turns_before, self._turns = self._turns, stacks.turns_of(threading.get_native_id())
            if passed - LOOK >= FIRST_REPORT:
                self._look_back(passed, before, self._waited - waited_before, self._turns - turns_before)
            self._look_at_loop(passed)
            self._look_at_heartbeat(passed)

    def _look_back(self, passed: float, before: dict[int, float], waited: float, turns: int) -> None:
        """Report why this check ran so late. `waited` is how many seconds this thread was ready to run but had no CPU, and `turns` is
        how many times it had one.

        If a thread used a lot of CPU time in the meantime, it was holding the interpreter lock, even if the machine is
        also busy. Ordinary Python code gives the lock up within milliseconds, so it would not have delayed this check.
        While this thread waits for the lock, it wakes every few milliseconds to ask for it, and may wait for a CPU
        each time. So a long `waited` shows that CPUs were scarce only if no thread in this process used much CPU time.
        If many threads did, they competed for the lock, and none of them held it for that long.
        """
        spent = self._spent_since(before)
        thread = max(spent, key=lambda one: spent[one], default=self._thread)
        # If the process was stopped, a thread may have computed for less than `LOOK` before that. While this thread was waiting for a CPU,
        # the other one got less CPU time too.
        is_computed = spent.get(thread, 0.0) >= min(max((passed - waited) / 5, LOOK / 2), 2 * LOOK)
        lease, lines = self._run_since(thread, passed) if is_computed else (self._lease_on_loop(), stacks.lines_of(self._thread))
        # The little that a thread uses while CPUs are scarce for seconds may be the worker's own work. That is no reason to accuse C code
        # unless a run was under way.
        if waited >= passed / 2 and (lease is None or not is_computed):
            self._emit(lambda: CpuStarved(passed - LOOK, self._ttl))
            return
        if 2 * spent.get(thread, 0.0) < sum(spent.values()) >= passed * LEAST_SHARE and turns > passed * TURNS:
            lease, lines = self._run_since(thread, passed)
            self._emit(lambda: InterpreterContended(lease, passed - LOOK, self._ttl, stacks.shown(lines) if lease else ""))
            return
        self._emit(lambda: InterpreterBlocked(lease, passed - LOOK, self._ttl, is_computed, stacks.shown(lines)))

    def _run_since(self, thread: int, passed: float) -> tuple[Lease | None, list[stacks.Line]]:
        """Return the lease of the run that held the interpreter lock in `thread`, and the lines that the thread is executing.

        This is the thread's current run if it has been under way for at least half of this check's delay. Otherwise it is the last slow
        run, if that ended during the delay. The thread may have continued with another run since then, so no lines are returned for it.
        """
        holding, slow = self._holding_in(thread), self._watched.slow
        late = passed - LOOK
        if holding is not None and (holding.started or 0.0) <= self.looked_at - late / 2:
            return holding.lease, stacks.lines_of(thread)
        if slow is not None and slow[1] > self.looked_at - late:
            return slow[0].lease, []
        return None, stacks.lines_of(thread)

    def _look_at_loop(self, passed: float) -> None:
        lasted = self._loops.seconds
        if self._loops.look(passed):
            self._computed_at_tick = self._computed
            if self._times_reported:
                self._times_reported, self._has_given_up, self.blocker = 0, False, None
                self._emit(lambda: LoopResumed(lasted))
            return
        lasted = self._loops.seconds
        if lasted >= FIRST_REPORT * REPORT_FACTOR**self._times_reported:
            self._times_reported += 1
            self.blocker = lease = self._lease_on_loop()
            lines = stacks.lines_of(self._thread)
            spent = self._spent_since(self._computed_at_tick)
            is_waiting = bool(spent) and spent.pop(self._thread, 0.0) < lasted / 4
            is_starved = is_waiting and stacks.is_in_own_code(lines)
            if is_waiting and (contender := self._contender(spent, lasted, is_starved=is_starved)) is not None:
                self.blocker, stack = contender
                lease = self.blocker
                self._emit(lambda: InterpreterContended(lease, lasted, self._ttl, stack))
            elif is_starved or (lease is None and stacks.waits_for_work(lines)):
                self._emit(lambda: CpuStarved(lasted, self._ttl))
            else:
                self._emit(lambda: LoopStalled(lease, lasted, stacks.shown(lines)))
        if 0 < self._stall_limit <= lasted and not self._has_given_up:
            self._give_up(lasted)

    def _contender(self, spent: dict[int, float], lasted: float, *, is_starved: bool) -> tuple[Lease | None, str] | None:
        """Return the run and the stack of the thread that has computed most, if such threads keep the loop's thread from the interpreter
        lock. That thread is either in its own code, as when it waits for a lock of one of them, or it is asking for the interpreter lock.
        """
        if sum(spent.values()) < lasted * LEAST_SHARE:
            return None
        thread = max(spent, key=lambda one: spent[one])
        holding = self._holding_in(thread)
        if is_starved and holding is None:
            return None, ""
        if holding is None or not (is_starved or self._asks_for_lock()):
            return None
        return holding.lease, stacks.shown(stacks.lines_of(thread))

    def _asks_for_lock(self) -> bool:
        turns = stacks.turns_of(self._native_id)
        self._stopping.wait(LOCK_LOOK)
        return stacks.turns_of(self._native_id) - turns > LOCK_LOOK * TURNS

    def _spent_since(self, before: dict[int, float]) -> dict[int, float]:
        """Return the CPU time of each thread since these readings of the clocks."""
        return {thread: seconds - before.get(thread, 0.0) for thread, seconds in self._computed.items()}

    def _give_up(self, lasted: float) -> None:
        self._has_given_up = True
        lease, threads = self._lease_on_loop(), stacks.lines_of_all()
        self._watched.give_up(is_delivered=self._emit(lambda: StalledForGood(lease, lasted, stacks.shown_all(threads))))

    def _look_at_heartbeat(self, passed: float) -> None:
        """Check that heartbeats are being sent. If the ttl passes without one, the
        heartbeat thread reports that itself; if it does not, it is dead or stuck."""
        self._beats.look(passed)
        if self._beats.seconds > self._ttl + 2 * FIRST_REPORT:
            self._beats.seconds = 0.0
            self._watched.note_silence()

    def _lease_on_loop(self) -> Lease | None:
        """Return the lease of the job whose code the loop's thread is executing. Plain
        functions are ignored, because they run in other threads and cannot block the loop."""
        holding = self._holding_in(self._thread)
        return holding.lease if holding is not None and holding.in_thread is None else None

    def _holding_in(self, thread: int) -> HeldLease | None:
        run = stacks.run_in_loop(self._loop, thread) if thread == self._thread else stacks.run_in(thread)
        return self._watched.holding_of(run) if run is not None else None

    def _emit(self, make: Callable[[], WorkerEvent]) -> bool:
        """Call the subscribers in a separate thread, because they may hang
        and this thread must not. Return True if they returned in time."""
        try:
            emitting = self._start_thread(lambda: self._events.emit(make()), "taskflow-events")
        except RuntimeError:  # the system cannot start another thread
            return False
        emitting.join(EMIT_WITHIN)
        return not emitting.is_alive()


def _clocks() -> tuple[float, dict[int, float]]:
    """Read the monotonic clock and the CPU clocks of the threads together,
    so that no long call into C code falls between the two readings."""
    while True:
        begun_at, computed, now = time.monotonic(), stacks.seconds_computed(), time.monotonic()
        if now - begun_at < LOOK:
            return now, computed
