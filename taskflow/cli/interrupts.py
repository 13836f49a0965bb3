"""A Ctrl-C while modules are being loaded. Loads nothing itself."""

from __future__ import annotations

import _thread
import signal


class Interrupts:
    """Remembers that one came, and raises it as Python does.

    The interpreter drops an exception that is raised in a callback of its own, as imports have many: the Ctrl-C would be lost, and
    the worker would start. What was remembered is raised again once it can be heeded.
    """

    def __init__(self) -> None:
        self.have_come = False

    def watch(self) -> None:
        """From now on, unless somebody else heeds them already."""
        if _thread.get_ident() == _main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._heed)

    def forget(self) -> None:
        self.have_come = False
        if _thread.get_ident() == _main_thread and signal.getsignal(signal.SIGINT) == self._heed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _heed(self, number: int, frame: object) -> None:
        self.have_come = True
        code = getattr(frame, "f_code", None)
        if code is not None and code.co_name == "cb" and code.co_filename.startswith("<frozen importlib"):
            return  # a module lock's callback: the exception would be dropped there, and shown as an error of ours
        raise KeyboardInterrupt


_main_thread = _thread.get_ident()
interrupts = Interrupts()
