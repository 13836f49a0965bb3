"""Envelopes, settlements and beats as arrays of columns, as the functions take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, TypeVar, cast

import msgpack

from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, pack_extras
from taskflow.model.progress import Progress
from taskflow.model.rules import LONGEST
from taskflow.model.session import Beat, Outlook
from taskflow.model.stored import LATEST
from taskflow.model.verdict import (
    Cancelled,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunError,
    Settlement,
    Snoozed,
    Succeeded,
)

T = TypeVar("T")

ID_BYTES: Final = 16
"""Of a job's id, and of a session's."""

# --- enqueue --------------------------------------------------------------------------------------------------


def envelope_columns(envelopes: Sequence[Envelope]) -> list[list[Any]]:
    """See enqueue.sql: ids, queues, jobs, priorities, afters, ats, expiries, keys, conflicts, payloads, extras, awaited, joined.

    A column in which nothing stands is empty: unnest() fills it with NULL, which costs less than to write that for each.
    """
    keys = _unless_void([envelope.key for envelope in envelopes])
    return [
        [envelope.id for envelope in envelopes],
        [envelope.queue for envelope in envelopes],
        [envelope.job for envelope in envelopes],
        [envelope.priority for envelope in envelopes],
        _unless_void([to_microseconds(envelope.after) if envelope.after else None for envelope in envelopes]),
        _unless_void([None if envelope.at is None else min(envelope.at, LATEST) for envelope in envelopes]),
        _unless_void([None if envelope.expires is None else to_microseconds(envelope.expires) for envelope in envelopes]),
        keys,
        [int(envelope.on_conflict) for envelope in envelopes] if keys else [],
        [envelope.payload for envelope in envelopes],
        _unless_void([pack_extras(envelope) for envelope in envelopes]),
        _unless_void([envelope.awaits or None for envelope in envelopes]),
        _unless_void([b"".join(envelope.joins) or None if envelope.joins else None for envelope in envelopes]),
    ]


def columns_of_calls(envelopes: Sequence[Envelope]) -> list[list[Any]]:
    """The same for enqueue(), which needs one of what is alike in all: queue, job, priority, conflict."""
    columns = envelope_columns(envelopes)
    return [_one_of_all(column) if place in _MOSTLY_ALIKE else column for place, column in enumerate(columns)]


_MOSTLY_ALIKE: Final = (1, 2, 3, 8)


def _unless_void(column: list[T | None]) -> list[T | None]:
    return [] if column.count(None) == len(column) else column


def added_or_refused(envelope: Envelope, answer: bytes) -> Added | Refused:
    match answer[:1]:
        case b"i":
            return Refused(envelope.id, envelope.id, "id")
        case b"k":
            return Refused(envelope.id, answer[1:], "key")
        case _:
            return Added(envelope.id, answer[1:] or None)


# --- beats ------------------------------------------------------------------------------------------------------


def beat_columns(beat: Beat) -> list[Any]:
    """See session.sql: requests, numbers, seen; of the reports requests, numbers, microseconds, progress; leaving, died_of, looks."""
    reports = [report for report in beat.reports if can_be(report.claim, beat.session)]
    own = [claim if can_be(claim, beat.session) else _NONE for claim in beat.claims]
    return [
        [claim.request for claim in own],
        [claim.number for claim in own],
        beat.seen,
        [report.claim.request for report in reports],
        [report.claim.number for report in reports],
        [to_microseconds(report.running_for) for report in reports],
        [pack_progress(report.progress) for report in reports],
        beat.leaving,
        _utf8(beat.died_of) if beat.died_of else None,
        beat.looks,
    ]


def outlook_of(is_ready: bool, due_in: int | None) -> Outlook:
    return Outlook(is_ready, math.inf if due_in is None else to_seconds(due_in))


_NONE: Final = ClaimId(b"", -1, -1)


def can_be(claim: ClaimId, session: bytes) -> bool:
    """Whether a claim is one that a store could have given to the session."""
    return claim.session == session and 0 <= claim.request < 1 << 63 and 0 <= claim.number < 1 << 31


def pack_progress(progress: Progress | None) -> bytes | None:
    return None if progress is None else pack([progress.fraction, progress.note])


def pack(value: object) -> bytes:
    packed = msgpack.packb(value, unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


# --- settle ---------------------------------------------------------------------------------------------------


def is_plain(settlement: Settlement) -> bool:
    """Whether it may be of those that are ended all at once: of no more than the store can tell, and with ids as long as all of ours."""
    is_simple = type(settlement.verdict) is Succeeded and not settlement.follow_ups and settlement.progress is None
    return is_simple and len(settlement.id) == len(settlement.claim.session) == ID_BYTES


def is_possible(settlement: Settlement) -> bool:
    """Whether a store could have given out its fence."""
    return 0 <= settlement.epoch < 1 << 31 and can_be(settlement.claim, settlement.claim.session)


def success_columns(settlements: Sequence[Settlement]) -> list[Any]:
    """Of plain ones; see settle.sql: ids, fences, ran_for, keep_for, results. The driver takes a third of a microsecond for each element
    of an array, twice that where it is text or bytes."""
    return [
        b"".join([settlement.id for settlement in settlements]),
        b"".join([_fence(settlement.epoch, settlement.claim) for settlement in settlements]),
        [to_microseconds(settlement.ran_for) for settlement in settlements],
        _one_of_all([_kept(settlement) for settlement in settlements]),
        _one_of_all([cast(Succeeded, settlement.verdict).result for settlement in settlements]),
    ]


def _kept(settlement: Settlement) -> int:
    return to_microseconds(min(settlement.keep_for, LONGEST))


def _one_of_all(column: list[T]) -> list[T]:
    """One, where all are the same."""
    return column[:1] if column and column.count(column[0]) == len(column) else column


def _fence(epoch: int, claim: ClaimId) -> bytes:
    return _EPOCH.pack(epoch) + claim.session + _CLAIM.pack(claim.request, claim.number)


_EPOCH: Final = Struct(">i")
_CLAIM: Final = Struct(">qi")


def settlement_columns(settlements: Sequence[Settlement]) -> list[list[Any]]:
    """See settle.sql: what is settled; the follow-ups, each with the place, from 1, of the settlement that it belongs to; progress."""
    rows = [_settlement_row(settlement) for settlement in settlements]
    follow_ups = [(place, envelope) for place, settlement in enumerate(settlements, 1) for envelope in settlement.follow_ups]
    return [
        *([list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(11)]),
        [place for place, _ in follow_ups],
        *envelope_columns([envelope for _, envelope in follow_ups]),
        _unless_void([pack_progress(settlement.progress) for settlement in settlements]),
    ]


def _settlement_row(settlement: Settlement) -> tuple[Any, ...]:
    kind, content, error, after = _verdict(settlement.verdict)
    claim = settlement.claim if can_be(settlement.claim, settlement.claim.session) else _NONE
    return (
        settlement.id,
        settlement.epoch,
        claim.session,
        claim.request,
        claim.number,
        kind,
        to_microseconds(settlement.ran_for),
        _kept(settlement) if kind == 1 else 0,
        content,
        error,
        after,
    )


def _verdict(verdict: object) -> tuple[int, bytes | None, bytes | None, int | None]:
    """Kind, content, error, wait."""
    match verdict:
        case Succeeded(result):
            return 1, result, None, None
        case Failed(error):
            return 2, _utf8(f"{error.type}: {error.message}"), _pack_error(error), None
        case Discarded(reason):
            return 3, _utf8(reason), None, None
        case Cancelled(reason):
            return 4, _utf8(reason), None, None
        case Retried(error, after):
            return 5, None, _pack_error(error), to_microseconds(after)
        case Snoozed(after):
            return 6, None, None, to_microseconds(after)
        case Parked(waiting_for, after):
            return 7, _utf8(waiting_for), None, to_microseconds(after)
        case HandedBack(counts):
            return 8, b"" if counts else None, None, None
        case _:
            raise TypeError(f"{verdict!r} is no verdict that a store knows")


def _pack_error(error: RunError) -> bytes:
    """The array of five without its last, the time, which the store adds."""
    return b"\x95" + pack(error.type) + pack(error.message) + pack(error.traceback) + pack(error.attempt)


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def text_for(name: str) -> str:
    """Return the name with what PostgreSQL's text cannot hold (a lone surrogate, a NUL) written out. A machine's name may be any bytes."""
    return name.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
