"""System calls of a child process: to end with its worker, however that ends, and to measure its memory."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NoReturn

# <sys/prctl.h>
_PR_SET_PDEATHSIG: Final = 1


@cache
def _library() -> Any:
    """Return the C library that the interpreter has loaded."""
    import ctypes  # imported here because a worker without children does not need it

    return ctypes.CDLL(None)


def end_with_parent() -> None:
    """Make the system kill this process when the thread that started it ends, even while C code holds the interpreter.

    That thread is the worker's event loop, which outlives its children. If the worker was already dead, or on a system other than Linux,
    the child notices the closed connection.
    """
    if sys.platform == "linux":
        _library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


_OUT_OF_MEMORY: Final = Path("/proc/self/oom_score_adj")


def die_before_parent() -> None:
    """Make Linux kill this process and what it starts before its parent when memory runs out, because the parent reports the death.

    https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html: 100 counts as a tenth of the total memory.
    """
    with contextlib.suppress(OSError, ValueError):  # another system, or no /proc
        _OUT_OF_MEMORY.write_text(str(min(1_000, int(_OUT_OF_MEMORY.read_text()) + 100)))


SAME_SIGNAL: Final = 0.05
"""Some parents send a signal to the process and to its group (`timeout`, `npm`): signals within this many seconds count as one."""

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that a worker and its children handle."""


def keep_handlers_from_forks(is_ours: Callable[[object], bool]) -> None:
    """Restore the default actions of these signals in processes that jobs fork. With our handlers such a process would never end by them,
    because what they notify does not exist there. A fork must not write signals into the event loop's pipe either.

    This includes SIGINT, which Python turns into a KeyboardInterrupt: a process forked in a thread may never see it.
    """
    os.register_at_fork(after_in_child=partial(_restore_handlers, is_ours))


def _restore_handlers(is_ours: Callable[[object], bool]) -> None:
    ours = [number for number in HANDLED if is_ours(signal.getsignal(number))]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


def end_now() -> NoReturn:
    """End this process, and everything that it started and that is still in its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def flush_native() -> None:
    """Flush the output of C code, which the C library buffers if stdout is not a terminal."""
    _library().fflush(None)


def resident_memory() -> int:
    """Return the resident memory in bytes; 0 if the system does not report it."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
