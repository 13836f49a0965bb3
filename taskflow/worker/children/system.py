"""System calls of a child process: it ends with its worker however that ends, and measures its memory."""

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
    import ctypes  # a worker without children does not need it

    return ctypes.CDLL(None)


def end_with_parent() -> None:
    """Have the system kill this process when the thread that started it ends, even while C code holds the interpreter.

    That is the thread of the worker's event loop, which outlives its children. If the worker was already dead, or on a system other than
    Linux, the child notices the closed connection.
    """
    if sys.platform == "linux":
        _library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


_OUT_OF_MEMORY: Final = Path("/proc/self/oom_score_adj")


def die_before_parent() -> None:
    """When memory runs out, have Linux kill this process and what it starts rather than its parent, which reports the death.

    https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html: 100 counts as a tenth of the memory there is.
    """
    with contextlib.suppress(OSError, ValueError):  # another system, or no /proc
        _OUT_OF_MEMORY.write_text(str(min(1_000, int(_OUT_OF_MEMORY.read_text()) + 100)))


SAME_SIGNAL: Final = 0.05
"""Seconds. Some parents send a signal to the process and to its group (`timeout`, `npm`): signals within this time count as one."""

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals for which a worker and its children have handlers."""


def keep_handlers_from_forks(is_ours: Callable[[object], bool]) -> None:
    """Restore the defaults of these signals in processes that jobs fork. Our handlers would keep such a process from ever ending by them:
    what they notify does not exist there. Nor may a fork write signals into the loop's pipe.

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
    """Write out what C code has printed: the C library buffers it if stdout is not a terminal."""
    _library().fflush(None)


def resident_memory() -> int:
    """Return the resident memory in bytes; 0 if the system does not report it."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
