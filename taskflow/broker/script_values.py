"""Converts verdicts and answers to and from the forms that Redis's scripts and PostgreSQL's functions use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from taskflow.broker.protocol import Added, Refused
from taskflow.model import verdict as verdicts
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope
from taskflow.model.schedule import Firing

SUCCEEDED: Final = 1


class VerdictParts(NamedTuple):
    """A verdict as the scripts receive it.

    `value` depends on the kind: a result, a reason, what a parked job waits for, or whether a hand-back is counted. `after` is in
    microseconds.
    """

    kind: int
    value: bytes | str | bool | None = None
    error: verdicts.RunError | None = None
    after: int | None = None


def parts_of(verdict: verdicts.Verdict) -> VerdictParts:
    match verdict:
        case verdicts.Succeeded(result):
            return VerdictParts(SUCCEEDED, result)
        case verdicts.Failed(error):
            return VerdictParts(2, f"{error.type}: {error.message}", error)
        case verdicts.Discarded(reason):
            return VerdictParts(3, reason)
        case verdicts.Cancelled(reason):
            return VerdictParts(4, reason)
        case verdicts.Retried(error, after):
            return VerdictParts(5, None, error, to_microseconds(after))
        case verdicts.Snoozed(after):
            return VerdictParts(6, after=to_microseconds(after))
        case verdicts.Parked(waiting_for, after):
            return VerdictParts(7, waiting_for, after=to_microseconds(after))
        case verdicts.HandedBack(counts):
            return VerdictParts(8, counts)
        case verdicts.Completed(otherwise):
            return parts_of(otherwise)
        case _:
            raise TypeError(f"{verdict!r} is not a verdict that a store knows")


def added_or_refused(envelope: Envelope, answer: bytes) -> Added | Refused:
    match answer[:1]:
        case b"i":
            return Refused(envelope.id, envelope.id, "id")
        case b"c":
            return Refused(envelope.id, envelope.id, "clash")
        case b"k":
            return Refused(envelope.id, answer[1:], "key")
        case _:
            return Added(envelope.id, answer[1:] or None)


def fire_answers(firings: Sequence[Firing], answers: Sequence[bytes | None]) -> list[Added | Refused | None]:
    return [
        None if firing.envelope is None or answer is None else added_or_refused(firing.envelope, answer)
        for firing, answer in zip(firings, answers, strict=True)
    ]


async def settle_possible(
    settle: Callable[[Sequence[verdicts.Settlement]], Awaitable[list[verdicts.Settled]]],
    settlements: Sequence[verdicts.Settlement],
    is_possible: Callable[[verdicts.Settlement], bool],
) -> list[verdicts.Settled]:
    """Settle runs whose fence a store could have issued. The others are
    STALE and are not sent, because their numbers may not fit into a column."""
    if all(map(is_possible, settlements)):
        return await settle(settlements)
    answers = iter(await settle([settlement for settlement in settlements if is_possible(settlement)]))
    return [next(answers) if is_possible(settlement) else verdicts.Settled.STALE for settlement in settlements]
