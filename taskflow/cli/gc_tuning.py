"""Adjusts Python's cyclic garbage collector in a worker's process. `main` loads this module before all others."""

from __future__ import annotations

import gc
from typing import Final, Self

RARE_COLLECTIONS: Final = 50_021
"""The number of new objects between two collections, instead of Python's 700 to 2,000. Imports create almost no garbage, yet collections
took 5 % of a worker's start. No application is likely to set exactly this number."""


class Collector:
    """A context manager in which Python's garbage collector runs rarely until `settle` is called. From then on
    it runs as usual, but skips objects that existed before.

    These are the modules and everything that the application created when it started. Scanning them would delay the first burst of jobs,
    by 3 ms with this package alone, and later bursts too. The drawback: reference cycles among them that are dropped later are not freed.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._has_frozen = False

    def __enter__(self) -> Self:
        before = gc.get_threshold()
        if 0 < before[0] < RARE_COLLECTIONS:  # otherwise it is off, or already this rare
            gc.set_threshold(RARE_COLLECTIONS)
            self._before = before
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
        """Restore the threshold, unless the application has set another one."""
        if self._before is not None and gc.get_threshold()[0] == RARE_COLLECTIONS:
            gc.set_threshold(*self._before)
        self._before = None
