"""Helpers for starting a command: they handle Ctrl-C during imports, make garbage collections rare, and run the command in another process.
This module imports no other part of taskflow, so that process 1 of a container needs little more memory than Python itself."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Self


class Interrupted(KeyboardInterrupt):
    """Raised when the signal `number` arrives while a command starts, or in a block of `raising`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def raising(*numbers: int) -> Iterator[None]:
    """In this block, these signals raise `Interrupted`, so that the block can undo its work. An ignored signal stays ignored."""
    before = {}
    with contextlib.suppress(ValueError):  # only the main thread can handle signals
        before = {number: signal.signal(number, _raise) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _raise(number: int, frame: object) -> None:
    raise Interrupted(number)


def drops_exceptions(frame: object) -> bool:
    """Return True if the interpreter drops exceptions raised in `frame`, a callback of the import system for a dead weak reference."""
    code = getattr(frame, "f_code", None)
    return code is not None and code.co_name in ("cb", "remove") and code.co_filename.startswith("<frozen importlib")


class Interrupts:
    """Remembers a Ctrl-C and raises it again, because the interpreter drops exceptions raised in its callbacks, which run during imports. A
    second Ctrl-C ends the process at once, and so does SIGTERM in process 1, where the kernel drops signals without a handler."""

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, object] = {}

    def watch(self) -> None:
        """Start handling the signals, unless other code already handles them."""
        with contextlib.suppress(ValueError):  # only the main thread can handle signals
            for number in (signal.SIGINT, signal.SIGTERM) if os.getpid() == 1 else (signal.SIGINT,):
                if (before := signal.getsignal(number)) in (signal.default_int_handler, signal.SIG_DFL):
                    signal.signal(number, self._handle)
                    self._before[number] = before

    def raise_again(self) -> None:
        """If a signal has arrived, raise its exception again, because the first exception may have been lost."""
        if self._number:
            raise Interrupted(self._number)

    def forget(self) -> None:
        self._number = 0
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)  # type: ignore[arg-type]
        self._before.clear()

    def _handle(self, number: int, frame: object) -> None:
        if self._number:
            os._exit(128 + number)
        self._number = number
        if not drops_exceptions(frame):
            raise Interrupted(number)


interrupts = Interrupts()

RARE_COLLECTIONS = 50_021  # new objects between two collections while a worker starts. No application is likely to set exactly this number


class Collector:
    """Makes garbage collections rare in its `with` block, until `settle` is called. Later ones skip all objects that existed by then."""

    def __enter__(self) -> Self:
        self._before = gc.get_threshold()
        gc.set_threshold(RARE_COLLECTIONS)
        return self

    def settle(self) -> None:
        self._restore()
        gc.freeze()

    def __exit__(self, *error: object) -> None:
        self._restore()
        gc.unfreeze()  # finalizers must run when Python exits, because they may write the last lines of a file

    def _restore(self) -> None:
        if gc.get_threshold()[0] == RARE_COLLECTIONS:  # otherwise the application has set it
            gc.set_threshold(*self._before)


program: list[str] = []
"""Python's arguments before the command's own, if another program, such as Django's manage.py, runs taskflow's commands."""

_BROKER = "TASKFLOW_BROKER_FLAG"  # carries the value of --broker, because every user of the machine can read command lines
# Signals that cannot be caught, SIGCHLD, the kernel's signals for faults of this process, and a terminal's stop signals.
_NOT_PASSED_ON = {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
}


def command_of(argv: list[str]) -> list[str]:
    """Return this process's command line without `--broker`. If other code called `main`, return a
    command line for `python -m taskflow` with the same arguments."""
    how = program or sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if not program and (argv != sys.orig_argv[len(sys.orig_argv) - len(argv) :] or argv != sys.argv[1:]):
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
    """Remove the variable that `environment_of` set, and return its value, the broker's URL. If it is not set, return `given`."""
    return os.environ.pop(_BROKER, None) or given


def run_as_pid1(arguments: argparse.Namespace) -> int:
    """Run the worker as a child of process 1 and pass signals on to it. Return its exit code, or 128+n if signal n ended it. Process 1 has
    to reap orphans, which a worker can't tell from processes that a job, or a library, is waiting for."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # Python writes the number of each signal into the pipe
    for number in (signal.SIGCHLD, *sorted(signal.valid_signals() - _NOT_PASSED_ON)):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup, and the worker inherits that
            with contextlib.suppress(OSError, ValueError):  # signals that the C library reserves
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
