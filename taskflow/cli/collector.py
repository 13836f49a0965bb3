"""Adjusts Python's cyclic garbage collector in a worker's process."""

from __future__ import annotations

import gc
from typing import Final, Self

SELDOM: Final = 50_021
"""New objects between two collections, instead of Python's 700 to 2,000. Imports create almost no garbage, and collections took 5 % of a
worker's start. No application is likely to set exactly this number.
"""


class Collector:
    """Inside the block Python's collector runs rarely, until `settle` is called. Then it runs as before, but skips objects that already
    exist.

    These objects are the modules and what the application created at its start. Scanning them would delay the first burst of jobs, by 3 ms
    with this package alone, and later bursts again. In return, cycles among them that are dropped later are not freed before the worker
    ends.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._while_starting: tuple[int, int, int] | None = None
        self._has_frozen = False

    def __enter__(self) -> Self:
        before = gc.get_threshold()
        if 0 < before[0] < SELDOM:  # otherwise it is off, or already this rare
            gc.set_threshold(SELDOM, *before[1:])
            self._before, self._while_starting = before, gc.get_threshold()
        return self

    def settle(self) -> None:
        self._restore()
        if not gc.get_freeze_count():  # otherwise the application has set it
            gc.freeze()
            self._has_frozen = True

    def __exit__(self, *error: object) -> None:
        self._restore()
        if self._has_frozen:
            gc.unfreeze()  # Finalizers must run when Python exits, because they may write the last lines of a file.

    def _restore(self) -> None:
        """Restore the threshold, unless the application has changed it meanwhile."""
        if self._before is not None and gc.get_threshold() == self._while_starting:
            gc.set_threshold(*self._before)
        self._before = None
