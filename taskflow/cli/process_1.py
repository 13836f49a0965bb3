"""`taskflow worker` as process 1 of a container, with no supervisor: the worker is a child of this process.

It reaps what others have left behind. The worker could not: it cannot tell an orphan from a process that a job, or a library's C code, has
started and waits for. It loads nothing of the worker, and stays as small as Python itself.
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

# What the kernel raises in a process for its own faults, and what a terminal stops and continues its processes by.
NOT_PASSED_ON: Final = frozenset(
    (
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
)


def run(arguments: argparse.Namespace) -> int:
    """Run the worker and pass signals on to it. Return its exit code, 128+n if signal n ended it."""
    wakes = _wakes()
    interrupts.raise_again()
    # In a session of its own: a terminal's Ctrl-C is told to it from here, and not twice.
    command = command_of(arguments.argv)
    worker = os.posix_spawn(command[0], command, environment_of(arguments.broker), setsid=True)
    while True:
        for number in os.read(wakes, 4096):
            if number != signal.SIGCHLD:
                os.kill(worker, number)  # not reaped yet, so that the pid is nobody else's
        if (code := _reap(worker)) is not None:
            return code


def _wakes() -> int:
    """A pipe's end, into which Python writes the number of each signal that comes from now on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *sorted(signal.valid_signals() - NOT_PASSED_ON)):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP under nohup: the worker inherits that
            with suppress(OSError, ValueError):  # the C library's own
                signal.signal(number, _note)
    return reader


def _note(number: int, frame: FrameType | None) -> None:
    """Python has written the number into the pipe already."""


def _reap(worker: int) -> int | None:
    """All that has ended. The worker's exit code, once it has."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return None
        if pid == worker:
            status = os.waitstatus_to_exitcode(status)
            return status if status >= 0 else 128 - status
