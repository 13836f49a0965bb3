"""Runs this command again in a new process: a supervisor's workers, and the worker below process 1 of a container.

It imports no part of the worker, so process 1 stays as small as Python itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress
from typing import Final

from taskflow.cli.interrupts import interrupts

_BROKER: Final = "TASKFLOW_BROKER_FLAG"
"""The environment variable that carries the value of `--broker`, which may
contain a password: every user of the machine can read command lines."""

# Signals that cannot be caught, SIGCHLD, the kernel's signals for faults of this process, and a terminal's stop signals.
_NOT_PASSED_ON: Final = frozenset(
    (
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
)


def command_of(argv: list[str]) -> list[str]:
    """Return the command line of this process, with the same Python options, but without `--broker`: see `environment_of`.

    If another program has called taskflow, return `python -m taskflow` with the same arguments.
    """
    how = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if argv != sys.orig_argv[len(sys.orig_argv) - len(argv) :] or argv != sys.argv[1:]:
        how = ["-m", "taskflow"]
    options = argv[: argv.index("--")] if "--" in argv else argv
    kept: list[str] = []
    is_value = False
    for argument in options:
        if not (is_value or argument == "--broker" or argument.startswith("--broker=")):
            kept.append(argument)
        is_value = argument == "--broker" and not is_value
    return [sys.executable, *how, *kept, *argv[len(options) :]]


def environment_of(broker: str | None) -> dict[str, str]:
    """Return the environment for the command line that `command_of` returns. It carries the value of `--broker`."""
    return {**os.environ, **({} if broker is None else {_BROKER: broker})}


def take_broker(given: str | None) -> str | None:
    """Remove the variable that `environment_of` has set, and return its value, the broker's URL. If it is not set, return `given`."""
    return os.environ.pop(_BROKER, None) or given


def run_as_pid1(arguments: argparse.Namespace) -> int:
    """Run the worker as a child of process 1 and pass signals on to it. Return its exit code, or 128+n if signal n ended it.

    Process 1 has to reap orphans. The worker could not do that, because it cannot tell an orphan from a process that a job, or a library's
    C code, has started and is waiting for.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # Python writes the number of each signal into the pipe
    for number in (signal.SIGCHLD, *sorted(signal.valid_signals() - _NOT_PASSED_ON)):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup, and the worker inherits that
            with suppress(OSError, ValueError):  # signals that the C library reserves
                signal.signal(number, lambda number, frame: None)
    interrupts.raise_again()
    # In a separate POSIX session, the worker gets a terminal's Ctrl-C only once, from this process.
    command = command_of(arguments.argv)
    worker = os.posix_spawn(command[0], command, environment_of(arguments.broker), setsid=True)
    while True:
        for heard in os.read(reader, 4096):
            if heard != signal.SIGCHLD:
                os.kill(worker, heard)  # not reaped yet, so no other process can have the pid
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code
