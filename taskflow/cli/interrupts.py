"""Handles Ctrl-C while modules are imported, and SIGTERM too if this is process 1. Imports nothing itself."""

from __future__ import annotations

import _thread
import os
import signal


class Told(KeyboardInterrupt):
    """A signal has come while there is nothing yet to wind down."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """Remembers that one came, and raises it as Python does.

    The interpreter drops an exception that is raised in a callback of its own, as imports have many: the Ctrl-C would be lost, and
    the worker would start. What was remembered is raised again once it can be heeded.

    A SIGTERM ends a process at once, without us. But the kernel keeps from process 1 of a container what it has no handler for: there it
    would be lost, and is heeded as a Ctrl-C is.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, object] = {signal.SIGINT: signal.default_int_handler}
        if os.getpid() == 1:
            self._before[signal.SIGTERM] = signal.SIG_DFL

    def watch(self) -> None:
        """From now on, unless somebody else heeds them already."""
        if _thread.get_ident() == _main_thread:
            for number, before in self._before.items():
                if signal.getsignal(number) == before:
                    signal.signal(number, self._heed)

    def raise_again(self) -> None:
        """What has come, and may have been lost."""
        if self._number:
            raise Told(self._number)

    def forget(self) -> None:
        self._number = 0
        if _thread.get_ident() == _main_thread:
            for number, before in self._before.items():
                if signal.getsignal(number) == self._heed:
                    signal.signal(number, before)  # type: ignore[arg-type]

    def _heed(self, number: int, frame: object) -> None:
        self._number = number
        code = getattr(frame, "f_code", None)
        if code is not None and code.co_name == "cb" and code.co_filename.startswith("<frozen importlib"):
            return  # a module lock's callback: the exception would be dropped there, and shown as an error of ours
        raise Told(number)


_main_thread = _thread.get_ident()
interrupts = Interrupts()
