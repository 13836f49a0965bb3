"""Batches: jobs that workers gather, so that one function call serves many of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec

from taskflow.model.printable import shown

MAX_SIZE: Final = 10_000
MAX_WITHIN: Final = 3_600.0


class Batch(msgspec.Struct, frozen=True):
    """How many jobs a worker gathers for one call, and how long the first job waits for others: ``Batch(size=100, within=2.0)``.

    `size`    the maximum number of jobs in one call, 1 to 10,000
    `within`  seconds or a timedelta, up to an hour, after which the call is made with the jobs gathered so far

    Raises TypeError or ValueError for an invalid field, naming it.
    """

    size: int
    within: float | timedelta

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"Batch(size={shown(self.size)}): expected a whole number from 1 to {MAX_SIZE:,}")
        if not isinstance(self.within, int | float | timedelta) or not 0 <= self.seconds <= MAX_WITHIN:
            raise ValueError(f"Batch(within={shown(self.within)}): expected seconds or a timedelta, from 0 to an hour")

    @property
    def seconds(self) -> float:
        return self.within.total_seconds() if isinstance(self.within, timedelta) else float(self.within)


class Failure:
    """An item of the list that a batch job returns, for a job that failed: ``Failure(error)`` or ``Failure("no such document")``.

    The job is treated as if its run had raised the error: it is retried, discarded, snoozed or cancelled by the same rules. Text becomes a
    RuntimeError. Raises TypeError for anything else.
    """

    __slots__ = ("error",)

    def __init__(self, error: BaseException | str) -> None:
        if not isinstance(error, BaseException | str):
            raise TypeError(f"Failure({shown(error)}): expected an exception or a str")
        self.error = RuntimeError(error) if isinstance(error, str) else error

    def __repr__(self) -> str:
        return f"Failure({self.error!r})"
