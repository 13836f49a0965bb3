"""Finds out what code another thread is running, and for which job."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from taskflow.app.context import JobContext, running
from taskflow.worker.executor import Executor
from taskflow.worker.thread_pool import ThreadPool

_LOOPS: Final = str(Path(asyncio.__file__).parent)
_OURS: Final = str(Path(__file__).parents[1])
_IN_LOOP: Final = Executor._run.__code__
_IN_THREAD: Final = ThreadPool._work.__code__

# CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, linux/posix-timers.h
_OF_A_THREAD: Final = 4 | 2

Line = tuple[str, int, str, None]
"""The file, line number and function of a stack frame. Its source text is not read from disk until the line is shown."""


def lines_of(thread: int) -> list[Line]:
    """Return the lines of a thread's stack, from the outermost call to the current one. The list is empty if the thread does not exist."""
    lines = [(code.co_filename, frame.f_lineno or 0, code.co_qualname, None) for frame in _frames(thread) for code in (frame.f_code,)]
    return lines[::-1]


def lines_of_all() -> dict[str, list[Line]]:
    """Return the lines of all threads, keyed by a thread's name and number."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {f"{names.get(ident, 'a thread')} ({ident})": lines_of(ident) for ident in sys._current_frames()}


def shown(lines: list[Line]) -> str:
    """Format lines as in a traceback. If the job's own lines are among them,
    only those are shown, because the calls above them do not help the user."""
    outside = [number for number, (file, *_) in enumerate(lines) if file.startswith((_OURS, _LOOPS, "<frozen "))]
    own = lines[outside[-1] + 1 :] if outside else lines
    return "".join(traceback.StackSummary.from_list(own or lines).format()).rstrip()


def waits_for_work(lines: list[Line]) -> bool:
    """Return True if these lines show an event loop's thread that is waiting in the loop's own code."""
    return bool(lines) and (lines[-1][0].startswith(_LOOPS) or lines[-1][0] == selectors.__file__)


def is_in_own_code(lines: list[Line]) -> bool:
    """Return True if a thread with these lines is executing taskflow's or asyncio's code, or waits there, as for another thread's lock."""
    files = [file for file, *_ in lines if file not in (threading.__file__, selectors.__file__)]
    return bool(files) and files[-1].startswith((_OURS, _LOOPS))


def shown_all(threads: dict[str, list[Line]]) -> str:
    stacks = (f"{name}:\n{''.join(traceback.StackSummary.from_list(lines).format())}" for name, lines in threads.items())
    return "\n".join(stacks).rstrip()


def run_in_loop(loop: asyncio.AbstractEventLoop, thread: int) -> JobContext | None:
    """Return the run whose code the event loop is executing, either in the run's own task or in a task that it started."""
    task = asyncio.current_task(loop)
    if task is None:
        return None
    context_of: Callable[[], Any] | None = getattr(task, "get_context", None)  # Python 3.12 and newer
    return context_of().get(running) if context_of is not None else run_in(thread)


def run_in(thread: int) -> JobContext | None:
    """Return the run of the async or plain job on the thread's stack, or None. It is
    found by searching the stack frames, so that runs need not record it."""
    for frame in _frames(thread):
        if frame.f_code is _IN_LOOP:
            context: JobContext | None = frame.f_locals.get("context")
            return context
        if frame.f_code is _IN_THREAD:
            work = frame.f_locals.get("work")
            return work.scope.get(running) if work is not None else None
    return None


def seconds_computed() -> dict[int, float]:
    """Return the CPU time of each Python thread in seconds, keyed by thread number. The result is empty if the system does not report it.

    A clock's id is computed from the thread's native id, as glibc does (clock_gettime(2)). For a thread that
    has ended, the kernel returns an error, whereas pthread_getcpuclockid would follow a dangling pointer.
    """
    if sys.platform != "linux":
        return {}
    seconds: dict[int, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None and thread.native_id is not None:
            with contextlib.suppress(OSError):
                seconds[thread.ident] = time.clock_gettime((~thread.native_id << 3) | _OF_A_THREAD)
    return seconds


def waited_for_processor() -> float:
    """Return for how many seconds the calling thread was ready to run but had no CPU, or 0.0 if the system does not report it.

    Time spent waiting for the interpreter lock does not count, because the thread sleeps meanwhile.
    """
    return _schedstat("thread-self")[1] / 1e9


def turns_of(native_id: int) -> int:
    """Return how many times the thread has had a CPU, or 0 if the system does not report it. A thread
    that waits for the interpreter lock wakes every few milliseconds to ask for it."""
    return _schedstat(f"self/task/{native_id}")[2]


def _schedstat(thread: str) -> tuple[int, int, int]:
    """Return the nanoseconds on a CPU, the nanoseconds of waiting for one, and the number of turns: see proc(5)."""
    try:
        with open(f"/proc/{thread}/schedstat", "rb") as told:  # as bytes: decoding could import a module that an upgrade has just removed
            ran, waited, turns = map(int, told.read().split())
    except (OSError, ValueError):
        return 0, 0, 0
    return ran, waited, turns


def _frames(thread: int) -> Iterator[FrameType]:
    """Yield the frames of a thread, from the current one outwards."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
