"""Ends a worker's process when its event loop is blocked for good."""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import suppress
from typing import Final

from taskflow.cli.exit_codes import Exit
from taskflow.model.clock import start_thread

DUMPED_WITHIN: Final = 2.0


def end_stalled(is_delivered: bool) -> None:
    """End the process. Called from the thread that noticed the stall.

    If `is_delivered` is True, the stacks are already in the log. If not, logging itself may hang, so Python's fault handler, which takes no
    lock, writes them to stderr. The process ends even if nothing reads the output.
    """
    if not is_delivered:
        with suppress(RuntimeError):  # the system cannot start another thread
            start_thread(_dump, "taskflow-dump").join(DUMPED_WITHIN)
    os._exit(Exit.STALLED)


def show_stacks_when_killed() -> None:
    """Make Python write the stacks of all threads before a fatal signal ends the process, even while C code holds the interpreter lock.

    These signals include SIGSEGV, and also SIGABRT, which systemd's watchdog sends to a silent worker.
    Does nothing if the application has enabled faulthandler.
    """
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError):  # there is no stderr
            faulthandler.enable(file=sys.stderr.fileno(), all_threads=True)


def _dump() -> None:
    with suppress(OSError, ValueError):
        faulthandler.dump_traceback(file=sys.stderr.fileno(), all_threads=True)
