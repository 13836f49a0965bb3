"""Packs settlements into arguments for the script `settle`, and decodes its answers.

Plain successes, by far the most common kind, are packed as columns; all others are packed as items.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from taskflow.broker.redis.enqueue import Texts, job_item
from taskflow.broker.redis.fields import SESSION_BYTES, TAIL_BYTES
from taskflow.broker.redis.large_payloads import INLINE_RESULT, REFERENCE_BYTES, reference_to
from taskflow.broker.redis.packing import Item, can_be, pack, pack_claim, pack_progress
from taskflow.broker.script_values import SUCCEEDED, parts_of
from taskflow.model.clock import to_microseconds
from taskflow.model.verdict import Settled, Settlement, Succeeded, is_plain_success, parts_sent

MOST_SETTLED: Final = 200
"""The maximum number of settlements in one call of the script."""

MOST_BYTES_SETTLED: Final = 1024 * 1024
"""Once the results in a call have this many bytes, no further settlement is added."""

MOST_RESULT: Final = 60 * 1024 * 1024
"""The maximum size of a result in bytes. Scripts do not read records larger than 64 MiB, and a record has other fields too."""

MOST_EPOCHS: Final = 1 << 32

IsApart = Callable[[bytes], bool]
"""A function that returns True if a result must be sent ahead."""


class PackedSettlements(NamedTuple):
    """The packed arguments for one call of the script. `order` holds the position of each answer's settlement."""

    packed: bytes
    order: Sequence[int]
    ahead: dict[bytes, bytes]
    """Results that must be sent ahead, keyed by the fences of their settlements: see `large_payloads`."""


def is_possible(settlement: Settlement) -> bool:
    """Return True if a store could have issued the settlement's fence. Any other is stale, and may be too large for the script."""
    claim = settlement.claim
    return len(claim.session) == SESSION_BYTES and can_be(claim, claim.session) and 0 <= settlement.epoch < MOST_EPOCHS


def portions(settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
    """Split the settlements into portions, one for each call, so that no call occupies the server for long."""
    portion, size = list[Settlement](), 0
    for settlement in settlements:
        if portion and (len(portion) == MOST_SETTLED or size >= MOST_BYTES_SETTLED):
            yield portion
            portion, size = [], 0
        portion.append(settlement)
        size += len(settlement.verdict.result) if isinstance(settlement.verdict, Succeeded) else 0
    if portion:
        yield portion


def pack_settlements(settlements: Sequence[Settlement], is_apart: IsApart) -> PackedSettlements:
    """Pack plain successes as columns, grouped by session and `keep_for`, and all others as items. The script settles the columns first, so
    if a job occurs twice, everything is packed as items, to keep the order.

    Each result for which `is_apart` is true is replaced by a reference.
    """
    texts, columns, others = Texts(), dict[tuple[bytes, float], _Columns](), list[int]()
    ahead: dict[bytes, bytes] = {}
    are_distinct = len({settlement.id for settlement in settlements}) == len(settlements)
    for place, settlement in enumerate(settlements):
        if are_distinct and is_plain_success(settlement):
            group = settlement.claim.session, settlement.keep_for
            if (of_group := columns.get(group)) is None:
                of_group = columns[group] = _Columns([], [], [], [], [])
            _add_success(of_group, place, settlement, is_apart, ahead)
        else:
            others.append(place)
    named = [[session, to_microseconds(keep_for), *of_group[1:]] for (session, keep_for), of_group in columns.items()]
    items = [_settlement_item(settlements[place], texts, is_apart, ahead) for place in others]
    packed = pack([named, items, list(texts), list(ahead)])
    return PackedSettlements(packed, [place for of_group in columns.values() for place in of_group.places] + others, ahead)


def settled_of(answers: bytes, order: Sequence[int]) -> list[Settled]:
    """Decode the script's answers. Return them in the order of the settlements."""
    settled = [Settled.STALE] * len(order)
    for place, answer in zip(order, answers, strict=True):
        if answer == _OK:
            settled[place] = Settled.OK
    return settled


_OK: Final = ord("o")


def _as_sent(result: bytes, fence: bytes, is_apart: IsApart, ahead: dict[bytes, bytes]) -> bytes:
    """Return the result as it is sent. If it must be sent ahead, add it to
    `ahead` and return a reference to it. Raises ValueError if it is too large."""
    if len(result) > MOST_RESULT:
        raise ValueError(f"Redis allows results of at most {MOST_RESULT:,} bytes, got {len(result):,}")
    if not is_apart(result):
        return result
    ahead[fence] = result
    return reference_to(result)


# --- plain successes ----------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    places: list[int]
    ids: list[bytes]
    fences: list[bytes]
    tails: list[bytes]
    outcomes: list[bytes]


_FENCE: Final = struct.Struct(">I16sQ")
_OUTCOME: Final = struct.Struct(">QQI")


def _add_success(columns: _Columns, place: int, settlement: Settlement, is_apart: IsApart, ahead: dict[bytes, bytes]) -> None:
    session, request, number = settlement.claim
    assert isinstance(settlement.verdict, Succeeded)
    result = settlement.verdict.result
    fence = _FENCE.pack(settlement.epoch, session, request << 16 | number)
    if (size := len(result)) > INLINE_RESULT or size == REFERENCE_BYTES:  # checked inline to save a function call for each job
        result = _as_sent(result, fence, is_apart, ahead)
    columns.places.append(place)
    columns.ids.append(settlement.id)
    columns.fences.append(fence)
    columns.tails.append(fence[-TAIL_BYTES:])
    ran_for = max(0, to_microseconds(settlement.ran_for))
    columns.outcomes.append(_OUTCOME.pack(ran_for, to_microseconds(settlement.keep_for), len(result)) + result)


# --- settlements of any kind --------------------------------------------------------------------------------------


def _settlement_item(settlement: Settlement, texts: Texts, is_apart: IsApart, ahead: dict[bytes, bytes]) -> Item:
    """Return the item that settle.lua expects for a settlement. It includes the payloads of follow-ups, whatever their size."""
    kind, value, error, after = parts_of(settlement.verdict)
    if isinstance(value, bytes):
        value = _as_sent(value, settlement.epoch.to_bytes(4) + pack_claim(settlement.claim), is_apart, ahead)
    keep_for = to_microseconds(settlement.keep_for) if kind == SUCCEEDED else 0  # for all others, the store's rules decide
    return (
        settlement.id,
        settlement.epoch,
        pack_claim(settlement.claim),
        kind,
        to_microseconds(settlement.ran_for),
        keep_for,
        False if value is None else value,
        False if error is None else parts_sent(error),
        False if after is None else after,
        [job_item(follow_up, texts) for follow_up in settlement.follow_ups] or False,
        pack_progress(settlement.progress),
        settlement.cause or False,
    )
