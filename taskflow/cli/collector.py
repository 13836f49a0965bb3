"""Python's collector of cycles, in a command's process."""

from __future__ import annotations

import gc
from typing import Final, Self

SELDOM: Final = 50_000
"""New objects between two looks, in place of Python's 700 to 2,000: of what an import makes next to nothing is garbage, and to look at it
again and again is a twentieth of the time that a worker takes to start."""


class Collector:
    """Seldom at work inside, until `settle` is called: after that as it was before, but for what is there by then.

    That is the modules, and what the application has made to have. In a worker's first burst of jobs a look at it all would hold them up,
    for 3 ms with this package alone and for more with larger ones, and later ones would again.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None

    def __enter__(self) -> Self:
        self._before = gc.get_threshold()
        gc.set_threshold(SELDOM, *self._before[1:])
        return self

    def settle(self) -> None:
        self._restore()
        gc.freeze()

    def __exit__(self, *error: object) -> None:
        self._restore()
        gc.unfreeze()  # what is written when an object goes, a file's last lines, is to be written at Python's end

    def _restore(self) -> None:
        """Unless the application has set it meanwhile."""
        if self._before is not None and gc.get_threshold()[0] == SELDOM:
            gc.set_threshold(*self._before)
        self._before = None
