"""Watches the worker's event loop and heartbeat from a separate thread, which can see what code the other threads are running."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from taskflow.app.context import JobContext, running
from taskflow.app.events import Event, Events
from taskflow.model.clock import StartThread
from taskflow.model.envelope import Lease
from taskflow.worker.events import InterpreterBlocked, LoopResumed, LoopStalled, StalledForGood
from taskflow.worker.executor import Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.thread_pool import ThreadPool

if TYPE_CHECKING:  # needed only for annotations
    from taskflow.worker.session_loop import SessionLoop

_LOOPS: Final = str(Path(asyncio.__file__).parent)
_OURS: Final = str(Path(__file__).parents[1])
_IN_LOOP: Final = Executor._run.__code__
_IN_THREAD: Final = ThreadPool._work.__code__

_OF_A_THREAD: Final = 4 | 2  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, linux/posix-timers.h

Line = tuple[str, int, str, None]
"""The file, line number and function of a stack frame. The None is for the source text, which is read from disk only to show it."""
CHECK_INTERVAL: Final = 0.25
FIRST_REPORT: Final = 1.0
REPORT_FACTOR: Final = 10  # a stall is reported again each time its duration has grown by this factor
END_TIMEOUT: Final = 0.05  # seconds for a run that held the interpreter lock to finish its last step
# Seconds to wait for the subscribers. They may hang, for example if the loop is blocked in the log that they write to.
EMIT_TIMEOUT: Final = 2.0


def lines_of(thread: int) -> list[Line]:
    """Return the lines of a thread's stack, from the outermost call to the current one. Empty if the thread does not exist."""
    lines = [(code.co_filename, frame.f_lineno or 0, code.co_qualname, None) for frame in _frames(thread) for code in (frame.f_code,)]
    return lines[::-1]


def stacks_of_all() -> str:
    """Format the stacks of all threads, each below the thread's name and number."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = (
        f"{names.get(thread, 'a thread')} ({thread}):\n{''.join(traceback.StackSummary.from_list(lines_of(thread)).format())}"
        for thread in sys._current_frames()
    )
    return "\n".join(stacks).rstrip()


def shown(lines: list[Line]) -> str:
    """Format lines as in a traceback. If the innermost lines are outside of taskflow and asyncio, show only those."""
    outside = [number for number, (file, *_) in enumerate(lines) if file.startswith((_OURS, _LOOPS, "<frozen "))]
    own = lines[outside[-1] + 1 :] if outside else lines
    return "".join(traceback.StackSummary.from_list(own or lines).format()).rstrip()


def run_in_loop(loop: asyncio.AbstractEventLoop, thread: int) -> JobContext | None:
    """Return the run, if any, whose code the event loop is executing, in the run's task or in one that the run started."""
    task = asyncio.current_task(loop)
    if task is None:
        return None
    context_of: Callable[[], Any] | None = getattr(task, "get_context", None)  # Python 3.12 and newer
    return context_of().get(running) if context_of is not None else run_in(thread)


def run_in(thread: int) -> JobContext | None:
    """Return the run on the thread's stack, or None. The frames are searched, so that runs need not record their threads."""
    for frame in _frames(thread):
        if frame.f_code is _IN_LOOP:
            context: JobContext | None = frame.f_locals.get("context")
            return context
        if frame.f_code is _IN_THREAD:
            work = frame.f_locals.get("work")
            return work.scope.get(running) if work is not None else None
    return None


def seconds_computed() -> dict[int, float]:
    """Return the CPU time of each Python thread in seconds, keyed by `Thread.ident`. Return {} if the system does not report it."""
    if sys.platform != "linux":
        return {}
    # A clock's id is computed from the thread's native id, as glibc does. For a thread that has ended, the kernel returns an error, whereas
    # pthread_getcpuclockid would follow a dangling pointer.
    seconds: dict[int, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None and thread.native_id is not None:
            with contextlib.suppress(OSError):
                seconds[thread.ident] = time.clock_gettime((~thread.native_id << 3) | _OF_A_THREAD)
    return seconds


def _frames(thread: int) -> Iterator[FrameType]:
    """Yield the frames of a thread, from the current one outwards."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


class Standstill:
    """Measures how long a value has stayed the same. A late check adds at most two intervals, because the process may have been stopped."""

    def __init__(self, read: Callable[[], object]) -> None:
        self._read = read
        self._seen = read()
        self.seconds = 0.0

    def check(self, passed: float) -> bool:
        """Read the value, `passed` seconds after the last check. Return True if it has changed."""
        seen = self._read()
        if seen != self._seen:
            self._seen, self.seconds = seen, 0.0
            return True
        self.seconds += min(passed, 2 * CHECK_INTERVAL)
        return False


class Watchdog:
    """Watches the event loop in which it was created, in a thread that never logs and never waits for the loop. `stalled_for` is the number
    of seconds for which the loop has been blocked (0.0 until a stall is reported), `checked_at` the monotonic time of the last check, and
    `blocker` the lease of the job that blocks the loop, or None."""

    def __init__(self, watched: SessionLoop, events: Events, start_thread: StartThread, *, stall_limit: float, ttl: float) -> None:
        self._events = events
        self._start_thread = start_thread
        self._watched = watched
        self._stall_limit = stall_limit
        self._ttl = ttl
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._stopping = threading.Event()
        self._ticks = 0
        self._loops = Standstill(lambda: self._ticks)
        self._beats = Standstill(lambda: watched.beats)
        self._times_reported = 0
        self._has_given_up = False
        self._computed = dict[int, float]()
        self.checked_at = time.monotonic()
        self.blocker: Lease | None = None

    @property
    def stalled_for(self) -> float:
        return self._loops.seconds if self._times_reported else 0.0

    def start(self) -> None:
        self._tick()
        self.checked_at, self._computed = _clocks()
        self._start_thread(self._watch, "taskflow-watchdog")

    def stop(self) -> None:
        self._stopping.set()
        self._timer.cancel()

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = self._loop.call_later(CHECK_INTERVAL, self._tick)

    def _watch(self) -> None:
        while not self._stopping.wait(CHECK_INTERVAL):
            now, computed = _clocks()
            passed, self.checked_at = now - self.checked_at, now
            before, self._computed = self._computed, computed
            if passed - CHECK_INTERVAL >= FIRST_REPORT:
                self._look_back(passed, before)
            self._check_loop(passed)
            # If the ttl passes without a heartbeat, the heartbeat's thread reports that itself, unless that thread is dead or stuck.
            self._beats.check(passed)
            if self._beats.seconds > self._ttl + 2 * FIRST_REPORT:
                self._beats.seconds = 0.0
                self._watched.record_silence()

    def _look_back(self, passed: float, before: dict[int, float]) -> None:
        """Report why this check ran so late. If a thread used a lot of CPU time in the meantime, it was holding the interpreter lock:
        ordinary Python code releases it within milliseconds. Less CPU time than `CHECK_INTERVAL` may date from before a suspension."""
        spent = {thread: seconds - before.get(thread, 0.0) for thread, seconds in self._computed.items()}
        thread = max(spent, key=lambda one: spent[one], default=self._thread)
        is_computed = spent.get(thread, 0.0) > CHECK_INTERVAL
        lease, lines = self._run_since(thread, passed) if is_computed else (self._lease_on_loop(), lines_of(self._thread))
        self._emit(lambda: InterpreterBlocked(lease, passed - CHECK_INTERVAL, self._ttl, is_computed, shown(lines)))

    def _run_since(self, thread: int, passed: float) -> tuple[Lease | None, list[Line]]:
        """Return the lease of the run that held the interpreter lock in `thread`, and the thread's lines. If the thread has no run
        that began early enough, a run that has ended held the lock: return its lease without lines or, if it is unknown, None."""
        holding, lines, late = self._holding_in(thread), lines_of(thread), passed - CHECK_INTERVAL
        if holding is not None and (holding.started or 0.0) <= self.checked_at - late / 2:
            return holding.lease, lines
        for pause in (0.0, END_TIMEOUT):  # the run may have been between two steps: give it a moment to end
            self._stopping.wait(pause)
            slow = self._watched.slow
            if slow is not None and slow[1] > self.checked_at - late:
                return slow[0].lease, []
        return None, lines

    def _check_loop(self, passed: float) -> None:
        lasted = self._loops.seconds
        if self._loops.check(passed):
            if self._times_reported:
                self._times_reported, self._has_given_up, self.blocker = 0, False, None
                self._emit(lambda: LoopResumed(lasted))
            return
        lasted = self._loops.seconds
        if lasted >= FIRST_REPORT * REPORT_FACTOR**self._times_reported:
            self._times_reported += 1
            self.blocker = lease = self._lease_on_loop()
            lines = lines_of(self._thread)
            self._emit(lambda: LoopStalled(lease, lasted, shown(lines)))
        if 0 < self._stall_limit <= lasted and not self._has_given_up:
            self._has_given_up = True
            lease, stacks = self._lease_on_loop(), stacks_of_all()
            self._watched.give_up(is_delivered=self._emit(lambda: StalledForGood(lease, lasted, stacks)))

    def _lease_on_loop(self) -> Lease | None:
        """Return the lease of the job whose code the loop's thread is executing, or None. Plain functions run in other threads."""
        holding = self._holding_in(self._thread)
        return holding.lease if holding is not None and holding.in_thread is None else None

    def _holding_in(self, thread: int) -> HeldLease | None:
        run = run_in_loop(self._loop, thread) if thread == self._thread else run_in(thread)
        return self._watched.holding_of(run) if run is not None else None

    def _emit(self, make: Callable[[], Event]) -> bool:
        """Call the subscribers in a separate thread, because they may hang. Return True if they returned within `EMIT_TIMEOUT`."""
        try:
            emitting = self._start_thread(lambda: self._events.emit(make()), "taskflow-events")
        except RuntimeError:  # the system cannot start another thread
            return False
        emitting.join(EMIT_TIMEOUT)
        return not emitting.is_alive()


def _clocks() -> tuple[float, dict[int, float]]:
    """Read the monotonic clock and the threads' CPU clocks. If another thread held the interpreter lock in between, read them again."""
    while True:
        begun_at, computed, now = time.monotonic(), seconds_computed(), time.monotonic()
        if now - begun_at < CHECK_INTERVAL:
            return now, computed
