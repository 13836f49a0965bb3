"""Ends the process of a worker whose event loop is blocked for good."""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import suppress
from typing import Final

from taskflow.cli.exits import Exit
from taskflow.model.seams import start_thread

DUMPED_WITHIN: Final = 2.0


def end_stalled(is_told: bool) -> None:
    """End the process. Called from the thread that noticed the stall. The stacks are in the log, unless the loop hangs there: then Python's
    own fault handler writes them, which takes no lock. The process ends whether or not anybody reads them."""
    if not is_told:
        with suppress(RuntimeError):  # the system cannot start another thread
            start_thread(_dump, "taskflow-dump").join(DUMPED_WITHIN)
    os._exit(Exit.STALLED)


def show_stacks_when_killed() -> None:
    """Write the stacks of all threads before a fatal signal ends the process, even while C code holds the interpreter: SIGSEGV, and
    SIGABRT, by which systemd's watchdog ends a silent worker. Does nothing if the application has arranged this itself."""
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError):  # there is no stderr
            faulthandler.enable(file=sys.stderr.fileno(), all_threads=True)


def _dump() -> None:
    with suppress(OSError, ValueError):
        faulthandler.dump_traceback(file=sys.stderr.fileno(), all_threads=True)
