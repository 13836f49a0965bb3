"""Plain jobs, as most are: their calls, leases and successes, for the scripts and from them, as the fixed layout has them. See `fields`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker.redis.fields import FIELDS, SESSION_BYTES, TAIL_BYTES
from taskflow.broker.redis.jobs import head_of, lease_of
from taskflow.broker.redis.large_payloads import is_large, reference_to
from taskflow.broker.redis.packing import (
    MOST_NUMBERS,
    MOST_REQUESTS,
    MOST_RESULT,
    Texts,
    checked_result,
    pack,
    settlement_item,
    unpack,
)
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, pack_extras, unpack_extras
from taskflow.model.record import CODES, Status
from taskflow.model.verdict import Settled, Settlement, Succeeded

# --- calls ------------------------------------------------------------------------------------------------------

MOST_PLAIN: Final = 2_000
"""Calls that enqueue.lua takes: all go to one command, to which Lua can give 8,000 values at most."""


_MOST_EXTRAS: Final = 0xFFFF


class Calls(NamedTuple):
    packed: bytes
    large: list[Envelope]
    """Those whose payloads are to be sent ahead: see `bodies`."""


def pack_plain(envelopes: Sequence[Envelope]) -> Calls | None:
    """See enqueue.lua. None when one of them wants more than that script does; so for all it is add.lua's, that they stay in order."""
    if not 0 < len(envelopes) <= MOST_PLAIN:
        return None
    runs, alike, large = list[list[Any]](), None, list[Envelope]()
    places: dict[str, int] = {}
    for envelope in envelopes:
        if not _is_plain(envelope):
            return None
        kind = (envelope.queue, envelope.job, envelope.priority)
        if kind != alike:
            alike = kind
            queue, job = "q:" + envelope.queue, "j:" + envelope.job
            runs.append([places.setdefault(queue, len(places) + 1), places.setdefault(job, len(places) + 1), envelope.priority])
        extras, payload = pack_extras(envelope) or b"", envelope.payload
        if len(extras) > _MOST_EXTRAS:
            return None
        if is_large(payload):
            large.append(envelope)
            payload = reference_to(payload)
        runs[-1] += (envelope.id, b"%b%b%b%b" % (len(extras).to_bytes(2), extras, len(payload).to_bytes(4), payload))
    return Calls(pack([list(places), [envelope.id for envelope in large], *runs]), large)


def _is_plain(envelope: Envelope) -> bool:
    """Ready at once, and nobody's business but its worker's."""
    return not (
        envelope.after or envelope.at is not None or envelope.expires is not None or envelope.key or envelope.awaits or envelope.joins
    )


# --- leases -----------------------------------------------------------------------------------------------------


class Claimed(NamedTuple):
    leases: list[Lease]
    is_armed: bool
    """The server tells the session of jobs to come: so it is when it has found fewer for it than it asked for."""


def claimed(reply: Sequence[bytes]) -> Claimed:
    """What claim.lua answers."""
    wall, names, is_armed = head_of(reply[0])
    leases = list[Lease]()
    for i in range(1, len(reply), 2):
        stored = reply[i + 1]
        if stored[0] == _RUNNING:
            try:
                leases.append(_plain_lease(reply[i], stored, names))
            except Exception:  # RecursionError, OverflowError, KeyError and msgpack's own errors included
                leases.append(lease_of(reply[i], _fields_of(stored), names, wall))
        else:
            leases.append(lease_of(reply[i], unpack(stored), names, wall))
    return Claimed(leases, is_armed)


_RUNNING: Final = CODES[Status.RUNNING]
_LEASED: Final = struct.Struct(">xI16sQ16xH")
_WAITING: Final = struct.Struct(">xbII14xQH")
"""The fixed layout: epoch, session, request and number, length of the worker's name; priority, queue, name, created, length of extras."""


def _plain_lease(job_id: bytes, stored: bytes, names: dict[int, str]) -> Lease:
    epoch, session, tail, worker_bytes = _LEASED.unpack_from(stored)
    at = _LEASED.size + worker_bytes
    priority, queue, name, created, extras_bytes = _WAITING.unpack_from(stored, at)
    at += _WAITING.size
    extras = unpack_extras(stored[at : at + extras_bytes]) if extras_bytes else _NONE
    payload = stored[at + extras_bytes + 4 :]
    return Lease(
        envelope=Envelope(id=job_id, job=names[name], payload=payload, queue=names[queue], priority=priority, **extras),
        epoch=epoch,
        claim=ClaimId(session, tail >> 16, tail & 0xFFFF),
        created_at=created,
    )


_NONE: Final[dict[str, Any]] = {}


def _fields_of(stored: bytes) -> list[Any]:
    """The array of fields that the fixed layout of a lease stands for."""
    epoch, session, tail, worker_bytes = _LEASED.unpack_from(stored)
    at = _LEASED.size + worker_bytes
    priority, queue, name, created, extras_bytes = _WAITING.unpack_from(stored, at)
    at += _WAITING.size
    job = dict.fromkeys(FIELDS, False) | {
        "status": _RUNNING,
        "queue": queue,
        "name": name,
        "priority": priority,
        "created": created,
        "payload": stored[at + extras_bytes + 4 :],
        "epoch": epoch,
        "claim": session + tail.to_bytes(TAIL_BYTES),
        "extras": stored[at : at + extras_bytes] or False,
    }
    return list(job.values())


# --- settlements ------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """Settlements for settle.lua, and which of them each answer is for."""

    packed: bytes
    order: Sequence[int]


def pack_settlements(settlements: Sequence[Settlement]) -> Sent:
    """Successes without more to them go in columns, by session and keep. They are settled first: not so when a job is there twice."""
    texts, columns, others = Texts(), dict[tuple[bytes, float], _Columns](), list[int]()
    are_distinct = len({settlement.id for settlement in settlements}) == len(settlements)
    for place, settlement in enumerate(settlements):
        if are_distinct and _is_plain_success(settlement):
            group = settlement.claim.session, settlement.keep_for
            if (of_group := columns.get(group)) is None:
                of_group = columns[group] = _Columns([], [], [], [], [])
            _add_success(of_group, place, settlement)
        else:
            others.append(place)
    named = [[session, to_microseconds(keep_for), *of_group[1:]] for (session, keep_for), of_group in columns.items()]
    packed = pack([named, [settlement_item(settlements[place], texts) for place in others], texts.all()])
    return Sent(packed, [place for of_group in columns.values() for place in of_group.places] + others)


class _Columns(NamedTuple):
    places: list[int]
    ids: list[bytes]
    fences: list[bytes]
    tails: list[bytes]
    outcomes: list[bytes]


def _is_plain_success(settlement: Settlement) -> bool:
    if type(settlement.verdict) is not Succeeded or settlement.follow_ups or settlement.progress is not None:
        return False
    session, request, number = settlement.claim
    return len(session) == SESSION_BYTES and 0 <= request < MOST_REQUESTS and 0 <= number < MOST_NUMBERS


_FENCE: Final = struct.Struct(">I16sQ")
_OUTCOME: Final = struct.Struct(">QQI")


def _add_success(columns: _Columns, place: int, settlement: Settlement) -> None:
    session, request, number = settlement.claim
    assert isinstance(settlement.verdict, Succeeded)
    result = settlement.verdict.result
    if len(result) > MOST_RESULT:  # asked here: no function is called for each job
        checked_result(result)
    fence = _FENCE.pack(settlement.epoch, session, request << 16 | number)
    columns.places.append(place)
    columns.ids.append(settlement.id)
    columns.fences.append(fence)
    columns.tails.append(fence[-TAIL_BYTES:])
    ran_for = max(0, to_microseconds(settlement.ran_for))
    columns.outcomes.append(_OUTCOME.pack(ran_for, to_microseconds(settlement.keep_for), len(result)) + result)


def settled_of(answers: bytes, order: Sequence[int]) -> list[Settled]:
    settled = [Settled.STALE] * len(order)
    for place, answer in zip(order, answers, strict=True):
        if answer == _OK:
            settled[place] = Settled.OK
    return settled


_OK: Final = ord("o")
