"""What goes to the scripts and comes from them: envelopes, settlements and beats as msgpack arrays, jobs as records and leases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.redis.fields import ID_BYTES, SESSION_BYTES, TAIL_BYTES
from taskflow.broker.redis.large_payloads import is_large, reference_to
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Envelope, pack_extras
from taskflow.model.progress import Progress
from taskflow.model.session import Beat, Outlook
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

Item = tuple[object, ...]


def pack(arguments: Sequence[object]) -> bytes:
    """Text may hold lone surrogates: an exception's message is not always what UTF-8 allows. Bytes go as strings: Lua knows no other."""
    packed = msgpack.packb(arguments, use_bin_type=False, unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


def unpack(packed: bytes) -> Any:
    """Strings come as bytes."""
    return msgpack.unpackb(packed, raw=True, strict_map_key=False)


# --- enqueue --------------------------------------------------------------------------------------------------


class Texts:
    """The distinct texts of a call, each told once, and named by its place."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        return self._places.setdefault(name, len(self._places) + 1)

    def all(self) -> list[str]:
        return list(self._places)


def pack_envelopes(envelopes: Sequence[Envelope]) -> bytes:
    """See add.lua. Large payloads are sent ahead of it: see `bodies`."""
    texts = Texts()
    items = [item_of(envelope, texts, apart=is_large(envelope.payload)) for envelope in envelopes]
    return pack([texts.all(), items, [envelope.id for envelope in envelopes if is_large(envelope.payload)]])


def item_of(envelope: Envelope, texts: Texts, *, apart: bool = False) -> Item:
    """See adding.lua. Follow-ups' payloads go with them, of whatever size."""
    return (
        envelope.id,
        texts.place("q:" + envelope.queue),
        texts.place("j:" + envelope.job),
        envelope.priority,
        to_microseconds(envelope.after) if envelope.after else 0,
        envelope.at if envelope.at is not None else False,
        False if envelope.expires is None else to_microseconds(envelope.expires),
        envelope.key or False,
        int(envelope.on_conflict),
        reference_to(envelope.payload) if apart else envelope.payload,
        pack_extras(envelope) or False,
        envelope.awaits,
        b"".join(envelope.joins) or False,
    )


def added_or_refused(envelope: Envelope, answer: bytes) -> Added | Refused:
    match answer[:1]:
        case b"i":
            return Refused(envelope.id, envelope.id, "id")
        case b"k":
            return Refused(envelope.id, answer[1:], "key")
        case _:
            return Added(envelope.id, answer[1:] or None)


# --- claims, beats ----------------------------------------------------------------------------------------------


def pack_tail(claim: ClaimId) -> bytes:
    """What tells a session's claims apart. They sort as requests and numbers do."""
    return claim.request.to_bytes(6, "big") + claim.number.to_bytes(2, "big")


def pack_claim(claim: ClaimId) -> bytes:
    return claim.session + pack_tail(claim)


def unpack_claim(packed: bytes) -> ClaimId:
    return claim_of(packed[:SESSION_BYTES], packed[SESSION_BYTES:])


def claim_of(session: bytes, tail: bytes) -> ClaimId:
    return ClaimId(session, int.from_bytes(tail[:6], "big"), int.from_bytes(tail[6:], "big"))


def can_be(claim: ClaimId, session: bytes) -> bool:
    """Whether a claim is one that a store could have given to the session."""
    return claim.session == session and 0 <= claim.request < MOST_REQUESTS and 0 <= claim.number < MOST_NUMBERS


def is_possible(settlement: Settlement) -> bool:
    """Whether a store could have given out its fence: any other is stale, and would not fit."""
    claim = settlement.claim
    return len(claim.session) == SESSION_BYTES and can_be(claim, claim.session) and 0 <= settlement.epoch < MOST_EPOCHS


MOST_EPOCHS: Final = 1 << 32
MOST_REQUESTS: Final = 1 << 48
MOST_NUMBERS: Final = 1 << 16


def pack_beat(beat: Beat) -> bytes:
    own = [claim for claim in beat.claims if can_be(claim, beat.session)]
    reports = [
        (pack_tail(report.claim), to_microseconds(report.running_for), pack_progress(report.progress))
        for report in beat.reports
        if can_be(report.claim, beat.session)
    ]
    return pack([beat.session, b"".join(map(pack_tail, own)), beat.seen, reports, beat.leaving, beat.died_of or False, beat.looks])


def outlook_of(is_ready: int, due_in: int) -> Outlook:
    return Outlook(bool(is_ready), math.inf if due_in < 0 else to_seconds(due_in))


def tails_in(packed: bytes, session: bytes) -> set[ClaimId]:
    return {claim_of(session, packed[first : first + TAIL_BYTES]) for first in range(0, len(packed), TAIL_BYTES)}


def pack_progress(progress: Progress | None) -> bytes | bool:
    return False if progress is None else pack([progress.fraction, progress.note])


# --- settle ---------------------------------------------------------------------------------------------------


MOST_SETTLED: Final = 200
MOST_BYTES_SETTLED: Final = 1024 * 1024


def portions(settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
    """What goes to one script: so many, or so many bytes of results."""
    portion, size = list[Settlement](), 0
    for settlement in settlements:
        if portion and (len(portion) == MOST_SETTLED or size >= MOST_BYTES_SETTLED):
            yield portion
            portion, size = [], 0
        portion.append(settlement)
        size += len(settlement.verdict.result) if isinstance(settlement.verdict, Succeeded) else 0
    if portion:
        yield portion


def settlement_item(settlement: Settlement, texts: Texts) -> Item:
    """See settle.lua."""
    kind, value, error, after = _verdict(settlement.verdict)
    keep_for = to_microseconds(settlement.keep_for) if kind == _SUCCEEDED else 0  # the store's rules say it of all others
    return (
        settlement.id,
        settlement.epoch,
        pack_claim(settlement.claim),
        kind,
        to_microseconds(settlement.ran_for),
        keep_for,
        value,
        error,
        after,
        [item_of(follow_up, texts) for follow_up in settlement.follow_ups] or False,
        pack_progress(settlement.progress),
    )


_SUCCEEDED: Final = 1

MOST_RESULT: Final = 60 * 1024 * 1024
"""Bytes. A record beyond 64 MiB is not read by any script."""


def checked_result(result: bytes) -> bytes:
    if len(result) > MOST_RESULT:
        raise ValueError(f"Redis keeps results of up to {MOST_RESULT:,} bytes, got {len(result):,}")
    return result


def _verdict(verdict: object) -> tuple[int, object, object, object]:
    """Kind, value, error, wait."""
    match verdict:
        case Succeeded(result):
            return _SUCCEEDED, checked_result(result), False, False
        case Failed(error):
            return 2, f"{error.type}: {error.message}", _error(error), False
        case Discarded(reason):
            return 3, reason, False, False
        case Cancelled(reason):
            return 4, reason, False, False
        case Retried(error, after):
            return 5, False, _error(error), to_microseconds(after)
        case Snoozed(after):
            return 6, False, False, to_microseconds(after)
        case Parked(waiting_for, after):
            return 7, waiting_for, False, to_microseconds(after)
        case HandedBack(counts):
            return 8, counts, False, False
        case _:
            raise TypeError(f"{verdict!r} is no verdict that a store knows")


def _error(error: RunError) -> Item:
    return (error.type, error.message, error.traceback, error.attempt)


def ids_in(packed: bytes) -> list[bytes]:
    return [packed[first : first + ID_BYTES] for first in range(0, len(packed), ID_BYTES)]
