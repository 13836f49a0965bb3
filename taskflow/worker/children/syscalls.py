"""System calls for child processes: they start a child, make it end with its worker, handle signals, and measure memory."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
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
    """Make the system kill this process when the thread that started it ends, even while C code holds the interpreter lock.

    That thread runs the worker's event loop, which outlives its children. If the worker was
    already dead, or the system is not Linux, the child notices that the connection is closed.
    """
    if sys.platform == "linux":
        _library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


_OUT_OF_MEMORY: Final = Path("/proc/self/oom_score_adj")


def die_before_parent() -> None:
    """If memory runs out, make Linux kill this process and its descendants before the parent, which then reports the death.

    An adjustment of 100 counts as a tenth of the total memory: https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html
    """
    with contextlib.suppress(OSError, ValueError):  # another system, or no /proc
        _OUT_OF_MEMORY.write_text(str(min(1_000, int(_OUT_OF_MEMORY.read_text()) + 100)))


SAME_SIGNAL: Final = 0.05
"""Signals within this many seconds count as one, because some parents (`timeout`, `npm`) signal both the process and its group."""

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that a worker and its children handle."""


def keep_handlers_from_forks(is_ours: Callable[[object], bool]) -> None:
    """Restore the default actions of the `HANDLED` signals in processes that jobs fork. With our handlers, these signals would never end
    such a process, because the event loop that the handlers notify does not exist there. Nor may such a process write to the loop's pipe.

    SIGINT is included, because Python would turn it into a KeyboardInterrupt, which a process forked in a thread may never see.
    """
    os.register_at_fork(after_in_child=partial(_restore_handlers, is_ours))


def _restore_handlers(is_ours: Callable[[object], bool]) -> None:
    ours = [number for number in HANDLED if is_ours(signal.getsignal(number))]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


def end_now() -> NoReturn:
    """End this process and everything it started that is still in its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def flush_native() -> None:
    """Flush the output of C code, which the C library buffers if stdout is not a terminal."""
    _library().fflush(None)


def resident_memory(pid: int | None = None) -> int:
    """Return the resident memory of a process (default: this one) in bytes, or 0 if it has ended or the system does not report it."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def spawn_in_session(command: list[str], environment: Mapping[str, str], **options: Any) -> int:
    """Start a program in a new POSIX session, and return its pid. `options` are those of `os.posix_spawn`."""
    try:
        return os.posix_spawn(command[0], command, environment, setsid=True, **options)
    except NotImplementedError:  # some systems do not support setsid
        return os.posix_spawn(command[0], command, environment, setpgroup=0, **options)
