"""What a child process asks of the system: to end with its worker, however that ends; how much memory it has."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

# <sys/prctl.h>
_PR_SET_PDEATHSIG: Final = 1

# C's own, which the interpreter has loaded.
_LIBRARY: Final = ctypes.CDLL(None)


def end_with_parent() -> None:
    """The system kills this process when the thread that has started it has ended, also while C code holds the interpreter.

    That thread is the one of the worker's event loop, which outlives its children. What this misses, a worker that was dead already, or
    another system than Linux, is seen by the closed connection.
    """
    if sys.platform == "linux":
        _LIBRARY.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def end_now() -> NoReturn:
    """With all that it has started and that did not leave its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def flush_native() -> None:
    """What C code has printed, and its library keeps back because it is no terminal that it prints to."""
    _LIBRARY.fflush(None)


def resident_memory() -> int:
    """In bytes; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
