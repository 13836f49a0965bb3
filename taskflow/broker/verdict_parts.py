"""A verdict as the scripts of Redis and the functions of PostgreSQL take it: settle.lua and settle.sql list the kinds."""

from __future__ import annotations

from typing import Final, NamedTuple

from taskflow.model.clock import to_microseconds
from taskflow.model.verdict import Cancelled, Discarded, Failed, HandedBack, Parked, Retried, RunError, Snoozed, Succeeded, Verdict

SUCCEEDED: Final = 1


class VerdictParts(NamedTuple):
    """`value` is a result, a reason, what a parked job waits for, or whether a hand-back counts; `after` is in microseconds."""

    kind: int
    value: bytes | str | bool | None = None
    error: RunError | None = None
    after: int | None = None


def parts_of(verdict: Verdict) -> VerdictParts:
    match verdict:
        case Succeeded(result):
            return VerdictParts(SUCCEEDED, result)
        case Failed(error):
            return VerdictParts(2, f"{error.type}: {error.message}", error)
        case Discarded(reason):
            return VerdictParts(3, reason)
        case Cancelled(reason):
            return VerdictParts(4, reason)
        case Retried(error, after):
            return VerdictParts(5, None, error, to_microseconds(after))
        case Snoozed(after):
            return VerdictParts(6, after=to_microseconds(after))
        case Parked(waiting_for, after):
            return VerdictParts(7, waiting_for, after=to_microseconds(after))
        case HandedBack(counts):
            return VerdictParts(8, counts)
        case _:
            raise TypeError(f"{verdict!r} is no verdict that a store knows")
