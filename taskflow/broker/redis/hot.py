"""Packs the arguments of the hot scripts, and decodes claims: see add.lua, claim.lua and succeed.lua."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgpack
import msgspec

from taskflow.broker.engine.job import Sent, encode
from taskflow.broker.engine.records import RUNNING, Flag
from taskflow.broker.engine.seam import Rev, Run
from taskflow.broker.redis.contents import is_apart, reference_to
from taskflow.broker.redis.layout import MARK, REFERENCE_BYTES, RUNNING_BYTES, WAITING_BYTES, number_bytes
from taskflow.broker.redis.records import names_in
from taskflow.model.envelope import ClaimId, Envelope, Lease, is_plain, pack_extras, unpack_extras

MOST_ADDED: Final = 2_000
"""The maximum number of jobs in one call of the script `add`, which adds them all with one command."""

MOST_ENDED: Final = 200
"""The maximum number of runs in one call of the script `succeed`."""


def pack(arguments: Sequence[object]) -> bytes:
    """Pack arguments, with bytes as strings, because Lua has no other type for them."""
    packed = msgpack.packb(arguments, use_bin_type=False, unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


def packed_envelopes(envelopes: Sequence[Envelope], rev: Rev) -> tuple[list[Any], dict[bytes, bytes]] | None:
    """Return the runs of plain jobs for the script `add`, and the contents to send ahead.
    Return None if the script cannot add all of them."""
    if not 0 < len(envelopes) <= MOST_ADDED:
        return None
    runs, last, contents, ids = list[list[Any]](), None, dict[bytes, bytes](), set[bytes]()
    lengths = names = b""
    for envelope in envelopes:
        if not is_plain(envelope) or envelope.expires is not None:
            return None
        kind = (envelope.queue, envelope.job, envelope.priority)
        if kind != last:
            queue, name = kind[0].encode(), kind[1].encode()
            lengths, names, last = len(queue).to_bytes(2, "big") + len(name).to_bytes(2, "big"), queue + name, kind
            runs.append([queue, kind[2]])
        extras, content = pack_extras(envelope), envelope.payload
        sent = b"" if extras is None else encode(Sent(extras))
        if is_apart(content):
            contents[envelope.id + rev] = content
            content = reference_to(content, rev)
        ids.add(envelope.id)
        size = (len(sent) + 1).to_bytes(4, "big") if sent else b"\0\0\0\0"
        runs[-1] += (envelope.id, b"%b%b%b%b%b" % (lengths, size, names, sent, content))
    return (runs, contents) if len(ids) == len(envelopes) else None


def fixed_tail(queue: bytes, job: bytes, sent: bytes | None, content: bytes) -> bytes:
    """Return the end of a waiting job in the fixed layout, from the lengths on: see records.lua."""
    return _LENGTHS.pack(len(queue), len(job), 0 if sent is None else len(sent) + 1) + queue + job + (sent or b"") + content


_LENGTHS: Final = struct.Struct(">HHI")


_LEASED: Final = struct.Struct(">9xQ16sQI16xH")
_WAITING: Final = struct.Struct(">9xHB16xQHHI")


def plain_leases(found: Sequence[bytes]) -> list[Lease] | None:
    """Return the leases on jobs in the fixed layout: see records.lua. Return None if one is not, or its content is stored apart."""
    leases = list[Lease]()
    try:
        for at in range(0, len(found), 2):
            stored = found[at + 1]
            if stored[0] != RUNNING or stored[-REFERENCE_BYTES:-12] == MARK:
                return None
            epoch, session, request, number, worker_bytes = _LEASED.unpack_from(stored)
            begin = RUNNING_BYTES + worker_bytes
            flags, priority, created_at, queue, job, sent = _WAITING.unpack_from(stored, begin)
            if flags & ~_LEASED_PLAINLY:
                return None
            begin += WAITING_BYTES
            sent_at = begin + queue + job
            name = names_in(stored[begin - 8 : begin - 6] + stored[begin:sent_at])
            content_at = sent_at + sent - 1 if sent else sent_at
            extras = _from_sent(stored[sent_at:content_at]) if sent else _NOTHING
            envelope = Envelope(id=found[at], job=name[1], queue=name[0], priority=priority - 128, payload=stored[content_at:], **extras)
            leases.append(Lease(envelope=envelope, epoch=epoch, claim=ClaimId(session, request, number), created_at=created_at - _BIAS))
    except Exception:  # another program may have written any bytes: the long way says what is wrong
        return None
    return leases


_NOTHING: Final[dict[str, Any]] = {}
_decode_sent: Final = msgspec.msgpack.Decoder(Sent).decode


_LEASED_PLAINLY: Final = Flag.KEYED | Flag.AWAITED | Flag.TAGGED


def _from_sent(sent: bytes) -> dict[str, Any]:
    its = _decode_sent(sent)
    extras = _NOTHING if its.extras is None else unpack_extras(its.extras)
    return extras if its.key is None else {**extras, "key": its.key}


_BIAS: Final = 1 << 63


def packed_runs(runs: Sequence[Run], rev: Rev, most_inline: int) -> tuple[list[Any], list[int], dict[bytes, bytes]]:
    """Return runs in groups for the script `succeed`, the places of its answers, and the contents to send ahead."""
    groups: dict[tuple[bytes, int], tuple[list[bytes], list[bytes], list[bytes], list[bytes], list[int]]] = {}
    contents: dict[bytes, bytes] = {}
    for place, (job_id, epoch, session, claim, result, ran_for, keep_for, key) in enumerate(runs):
        group = groups.get((session, keep_for))
        if group is None:
            group = groups[session, keep_for] = ([], [], [], [], [])
        if is_apart(result, most_inline):
            contents[job_id + rev] = result
            result = reference_to(result, rev)
        ids, fences, outcomes, keys, places = group
        ids.append(job_id)
        fences.append(epoch.to_bytes(8, "big") + session + claim)
        outcomes.append(number_bytes(max(0, ran_for)) + result)
        keys.append(key or b"")
        places.append(place)
    packed = [[session, keep_for, *group[:3], group[3] if any(group[3]) else False] for (session, keep_for), group in groups.items()]
    return packed, [place for group in groups.values() for place in group[4]], contents


def is_possible(run: Run) -> bool:
    """Return True if a store could have given the fence of the run. Any other is stale, and may be too large for the script."""
    return len(run.session) == 16 and len(run.claim) == 12 and 0 <= run.epoch < 1 << 53
