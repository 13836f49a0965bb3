"""What a child process asks of the system: to end with its worker, however that ends; how much memory it has."""

from __future__ import annotations

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
    """C's own, which the interpreter has loaded."""
    import ctypes  # a worker without children needs none of it

    return ctypes.CDLL(None)


def end_with_parent() -> None:
    """The system kills this process when the thread that has started it has ended, also while C code holds the interpreter.

    That thread is the one of the worker's event loop, which outlives its children. What this misses, a worker that was dead already, or
    another system than Linux, is seen by the closed connection.
    """
    if sys.platform == "linux":
        _library().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


SAME_SIGNAL: Final = 0.05
"""Some parents send a signal to the process and to its group (`timeout`, `npm`): what comes within so many seconds is one signal."""

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What a worker, and a child of its, has handlers of its own for."""


def keep_handlers_from_forks(is_ours: Callable[[object], bool]) -> None:
    """What a job forks has those signals' defaults where this process has handlers of ours, which would keep it from ever ending by them:
    what they tell is not there any more, or not meant for it. Nor are signals written into the loop's pipe from there.

    Also for SIGINT, of which Python would make a KeyboardInterrupt: forked in a thread, it may not hear of one.
    """
    os.register_at_fork(after_in_child=partial(_restore_handlers, is_ours))


def _restore_handlers(is_ours: Callable[[object], bool]) -> None:
    ours = [number for number in HANDLED if is_ours(signal.getsignal(number))]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)


def end_now() -> NoReturn:
    """With all that it has started and that did not leave its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def flush_native() -> None:
    """What C code has printed, and its library keeps back because it is no terminal that it prints to."""
    _library().fflush(None)


def resident_memory() -> int:
    """In bytes; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
