"""Runs `taskflow worker` as process 1 of a container without a supervisor. The worker becomes a child of this process.

Process 1 has to reap orphans. The worker could not do that, because it cannot tell an orphan from a process that a job, or a library's C
code, has started and is waiting for. This module imports no part of the worker, so the process stays as small as Python itself.
"""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Final

from taskflow.cli.interrupts import interrupts
from taskflow.cli.reexec import command_of, environment_of

# Signals that cannot be caught, SIGCHLD, the kernel's signals for faults of this process, and a terminal's stop signals.
NOT_PASSED_ON: Final = frozenset(
    (
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
)


def run(arguments: argparse.Namespace) -> int:
    """Run the worker and pass signals on to it. Return its exit code, or 128+n if signal n ended it."""
    wakes = _wakes()
    interrupts.raise_again()
    # In a separate POSIX session, the worker gets a terminal's Ctrl-C only once, from this process.
    command = command_of(arguments.argv)
    worker = os.posix_spawn(command[0], command, environment_of(arguments.broker), setsid=True)
    while True:
        for number in os.read(wakes, 4096):
            if number != signal.SIGCHLD:
                os.kill(worker, number)  # not reaped yet, so no other process can have the pid
        if (code := _reap(worker)) is not None:
            return code


def _wakes() -> int:
    """Return the read end of a pipe into which Python writes the number of each signal that arrives from now on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *sorted(signal.valid_signals() - NOT_PASSED_ON)):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup, and the worker inherits that
            with suppress(OSError, ValueError):  # signals that the C library reserves
                signal.signal(number, _note)
    return reader


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python has already written the number into the pipe."""


def _reap(worker: int) -> int | None:
    """Reap processes that have ended. Return the worker's exit code if it is one of them, else None."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return None
        if pid == worker:
            status = os.waitstatus_to_exitcode(status)
            return status if status >= 0 else 128 - status
