"""Handles Ctrl-C while modules are imported and, in process 1, also SIGTERM. This module imports no other part of taskflow."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """Raised when a signal arrives before the worker has started."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def raising(*numbers: int) -> Iterator[None]:
    """In this block, these signals raise `Interrupted`, so that the block can undo its work. A signal that is ignored, as under `nohup`,
    stays ignored."""
    can_handle = _thread.get_ident() == _main_thread
    before = {number: signal.signal(number, _raise) for number in numbers if can_handle and signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _raise(number: int, frame: object) -> None:
    raise Interrupted(number)


def drops_exceptions(frame: object) -> bool:
    """Return True if `frame` is a function that the import system calls when a weak reference
    dies. The interpreter would drop an exception raised there, and print it as an error of taskflow."""
    code = getattr(frame, "f_code", None)
    return code is not None and code.co_name in ("cb", "remove") and code.co_filename.startswith("<frozen importlib")


class Interrupts:
    """Remembers a Ctrl-C, and raises it again if it was lost.

    The interpreter drops an exception that is raised in one of its callbacks, and imports run many of them. Without this class, the Ctrl-C
    would be lost and the worker would start. A second Ctrl-C ends the process at once.

    SIGTERM normally ends a process that has no handler for it. But for process 1 of a container, the kernel drops signals without a
    handler. In process 1, SIGTERM is therefore handled like a Ctrl-C.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, object] = {}

    def watch(self) -> None:
        """Start handling the signals, unless other code already handles them."""
        if _thread.get_ident() == _main_thread:
            for number in (signal.SIGINT, signal.SIGTERM) if os.getpid() == 1 else (signal.SIGINT,):
                if (before := signal.getsignal(number)) in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = before
                    signal.signal(number, self._handle)

    def raise_again(self) -> None:
        """If a signal has arrived, raise its exception again, because the first exception may have been lost."""
        if self._number:
            raise Interrupted(self._number)

    def forget(self) -> None:
        self._number = 0
        if _thread.get_ident() == _main_thread:
            for number, before in self._before.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self._number:
            os._exit(128 + number)
        self._number = number
        if not drops_exceptions(frame):
            raise Interrupted(number)


_main_thread = _thread.get_ident()
interrupts = Interrupts()
