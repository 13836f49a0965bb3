"""Reads from outside where a thread is, and in which job's run."""

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
from taskflow.worker.threads import Threads

_LOOPS: Final = str(Path(asyncio.__file__).parent)
_OURS: Final = str(Path(__file__).parents[1])
_IN_LOOP: Final = Executor._run.__code__
_IN_THREAD: Final = Threads._work.__code__

# CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, linux/posix-timers.h
_OF_A_THREAD: Final = 4 | 2

Line = tuple[str, int, str, None]
"""File, line number and function: taken as they are, so that nothing is read from a disk before it is shown."""


def lines_of(thread: int) -> list[Line]:
    """From the outermost call to where it is; empty when there is no such thread."""
    lines = [(code.co_filename, frame.f_lineno or 0, code.co_qualname, None) for frame in _frames(thread) for code in (frame.f_code,)]
    return lines[::-1]


def lines_of_all() -> dict[str, list[Line]]:
    """By the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {f"{names.get(ident, 'a thread')} ({ident})": lines_of(ident) for ident in sys._current_frames()}


def shown(lines: list[Line]) -> str:
    """As a traceback has them, and the job's own alone where it is in them: the calls that lead to it tell the user nothing."""
    outside = [number for number, (file, *_) in enumerate(lines) if file.startswith((_OURS, _LOOPS, "<frozen "))]
    own = lines[outside[-1] + 1 :] if outside else lines
    return "".join(traceback.StackSummary.from_list(own or lines).format()).rstrip()


def waits_for_work(lines: list[Line]) -> bool:
    """Whether a loop's thread is in no code but the loop's own."""
    return bool(lines) and (lines[-1][0].startswith(_LOOPS) or lines[-1][0] == selectors.__file__)


def shown_all(threads: dict[str, list[Line]]) -> str:
    stacks = (f"{name}:\n{''.join(traceback.StackSummary.from_list(lines).format())}" for name, lines in threads.items())
    return "\n".join(stacks).rstrip()


def run_in_loop(loop: asyncio.AbstractEventLoop, thread: int) -> JobContext | None:
    """The run whose code the loop is in: that of the task itself, or of the one that it was begun by."""
    task = asyncio.current_task(loop)
    if task is None:
        return None
    context_of: Callable[[], Any] | None = getattr(task, "get_context", None)  # Python 3.12 and newer
    return context_of().get(running) if context_of is not None else run_in(thread)


def run_in(thread: int) -> JobContext | None:
    """The run that is on the thread's stack, of an async job or of a plain one. Costs the runs nothing: it is read from their frames."""
    for frame in _frames(thread):
        if frame.f_code is _IN_LOOP:
            context: JobContext | None = frame.f_locals.get("context")
            return context
        if frame.f_code is _IN_THREAD:
            work = frame.f_locals.get("work")
            return work.scope.get(running) if work is not None else None
    return None


def seconds_computed() -> dict[int, float]:
    """The processor's time that each thread of Python's has had, by its number; empty where the system does not tell.

    By the kernel's own name of a thread's clock (clock_gettime(2), as glibc makes it up): it refuses a thread that has ended meanwhile,
    where pthread_getcpuclockid would follow a pointer that leads nowhere.
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
    """Seconds that the calling thread was ready to run and had no processor; 0.0 where the system does not tell.

    A thread that waits for the interpreter lock sleeps, and is not counted.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as told:  # as bytes: decoding could import what an upgrade has just removed
            return int(told.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _frames(thread: int) -> Iterator[FrameType]:
    """From where it is outwards."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
