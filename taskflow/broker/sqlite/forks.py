"""Makes a fork wait, for at most `MAX_WAIT` seconds, until no transaction is running in this process.

SQLite keeps a process's file locks in a table in memory. A child forked during a transaction inherits the entry, and then finds the file
locked for ever. See https://sqlite.org/howtocorrupt.html, section 2.6.
"""

from __future__ import annotations

import os
import threading
from typing import Final

MAX_WAIT: Final = 5.0
"""The maximum time in seconds that a fork waits, longer than a transaction waits for another process's lock."""


def keep_open(connection: object) -> None:
    """In a forked child, keep the parent's connection open for ever, because even closing it could damage the file."""
    import ctypes  # takes 10 ms, and only such a child needs it

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


class _Gate:
    """A gate that transactions in any thread pass through. A fork waits until no other thread is inside."""

    def __init__(self) -> None:
        self._reset()

    def __enter__(self) -> None:
        with self._changed:
            while self._is_forking:
                self._changed.wait()
            self._inside.add(threading.get_ident())

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._inside.discard(threading.get_ident())  # does nothing in a child that was forked inside the gate
            if self._is_forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._is_forking = True
            self._changed.wait_for(lambda: self._inside <= {threading.get_ident()}, MAX_WAIT)

    def after_in_parent(self) -> None:
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def after_in_child(self) -> None:
        """Replace the lock in a forked child, because the threads that held it or were inside do not exist there."""
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._inside = set[int]()
        self._is_forking = False


transactions: Final = _Gate()

os.register_at_fork(
    before=transactions.before_fork, after_in_parent=transactions.after_in_parent, after_in_child=transactions.after_in_child
)
