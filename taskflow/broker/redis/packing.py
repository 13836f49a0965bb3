"""Packs the arguments of the scripts `add`, `succeed` and `apply`, and decodes the replies of `claim`. See the Lua files of these names."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgpack
import msgspec

from taskflow.broker.engine.job import Sent, encode, in_flow
from taskflow.broker.engine.records import HEADERS, INDEXES, READY, RUNNING, Flag, Kind, Owner
from taskflow.broker.engine.seam import ABSENT, KEEP, NOW, After, Answer, Applied, Full, Put, Ref, Rev, Run, Stale, Step
from taskflow.broker.redis.layout import (
    DEFAULTS,
    ENTRIES,
    MARK,
    MEMBER_BYTES,
    PLACES,
    REFERENCE_BYTES,
    RUNNING_BYTES,
    SINCE_BYTES,
    WAITING_BYTES,
    field_bytes,
    number_bytes,
    packed_entries,
    text_bytes,
)
from taskflow.broker.redis.records import is_apart, names_in, reference_to
from taskflow.model.envelope import ClaimId, Envelope, Lease, is_plain, pack_extras, unpack_extras
from taskflow.model.flow import check_member

MAX_ADDED: Final = 2_000
"""The maximum number of jobs in one call of the script `add`, which adds them all with one command."""

MAX_ENDED: Final = 200
"""The maximum number of runs in one call of the script `succeed`."""


def pack(arguments: Sequence[object]) -> bytes:
    """Pack arguments, with bytes as strings, because Lua has no other type for them."""
    packed = msgpack.packb(arguments, use_bin_type=False, unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


def packed_envelopes(envelopes: Sequence[Envelope], rev: Rev) -> tuple[list[Any], dict[bytes, bytes]] | None:
    """Return the arguments for the script `add`, and the contents to send ahead, or None if the script can't add all of the jobs."""
    if not 0 < len(envelopes) <= MAX_ADDED:
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
    """Return the last part of a waiting job in the fixed layout, starting at the lengths: see records.lua."""
    return _LENGTHS.pack(len(queue), len(job), 0 if sent is None else len(sent) + 1) + queue + job + (sent or b"") + content


_LENGTHS: Final = struct.Struct(">HHI")


_LEASED: Final = struct.Struct(">9xQ16sQIQ8xH")
_WAITING: Final = struct.Struct(">9xHBQ8xQHHI")


def plain_leases(found: Sequence[bytes]) -> list[Lease] | None:
    """Return the leases on jobs in the fixed layout (see records.lua). Return None if a job is stored in another form or can't be read."""
    leases = list[Lease]()
    try:
        for at in range(0, len(found), 2):
            stored = found[at + 1]
            if stored[0] != RUNNING or stored[-REFERENCE_BYTES:-12] == MARK:
                return None
            epoch, session, request, number, claimed_at, worker_bytes = _LEASED.unpack_from(stored)
            begin = RUNNING_BYTES + worker_bytes
            flags, priority, due_at, created_at, queue, job, sent = _WAITING.unpack_from(stored, begin)
            if flags & ~_LEASED_PLAINLY:
                return None
            begin += WAITING_BYTES
            sent_at = begin + queue + job
            name = names_in(stored[begin - 8 : begin - 6] + stored[begin:sent_at])
            sent_at += MEMBER_BYTES if flags & Flag.MEMBER else 0
            content_at = sent_at + sent - 1 if sent else sent_at
            if flags & Flag.LIMITED:
                sent_at += SINCE_BYTES
            extras = _from_sent(stored[sent_at:content_at]) if sent else _NOTHING
            envelope = Envelope(id=found[at], job=name[1], queue=name[0], priority=priority - 128, payload=stored[content_at:], **extras)
            claim, waited = ClaimId(session, request, number), claimed_at - due_at
            leases.append(Lease(envelope=envelope, epoch=epoch, claim=claim, created_at=created_at - _BIAS, waited=waited))
    except Exception:  # another program may have written any bytes: the slow path says what is wrong
        return None
    return leases


_NOTHING: Final[dict[str, Any]] = {}
_decode_sent: Final = msgspec.msgpack.Decoder(Sent).decode


_LEASED_PLAINLY: Final = Flag.KEYED | Flag.AWAITED | Flag.TAGGED | Flag.MEMBER | Flag.LIMITED | Flag.MANY_GATES


def _from_sent(sent: bytes) -> dict[str, Any]:
    its = _decode_sent(sent)
    extras = _NOTHING if its.extras is None else unpack_extras(its.extras)
    if its.member is not None:
        check_member(its.member, its.joined, its.ties)
    elif its.key is None and not its.limits:
        return extras
    return {**extras, "key": its.key, "limits": its.limits, **in_flow(its)}


_BIAS: Final = 1 << 63


Grouped = tuple[list[Any], list[int], dict[bytes, bytes]]
"""Groups of runs, the index of the run for each answer, and the contents to send ahead."""


def packed_runs(runs: Sequence[Run], rev: Rev, max_inline: int) -> Grouped:
    """Group runs for the script `succeed`."""
    groups: dict[tuple[bytes, int], tuple[list[bytes], list[bytes], list[bytes], list[bytes], list[bytes], list[bytes], list[int]]] = {}
    contents: dict[bytes, bytes] = {}
    for place, (job_id, epoch, session, claim, result, ran_for, keep_for, key, awaited_by, note) in enumerate(runs):
        group = groups.get((session, keep_for))
        if group is None:
            group = groups[session, keep_for] = ([], [], [], [], [], [], [])
        if is_apart(result, max_inline):
            contents[job_id + rev] = result
            result = reference_to(result, rev)
        ids, fences, outcomes, keys, awaiting, notes, places = group
        ids.append(job_id)
        fences.append(epoch.to_bytes(8, "big") + session + claim)
        outcomes.append(number_bytes(max(0, ran_for)) + result)
        keys.append(key or b"")
        awaiting.append(awaited_by or b"")
        notes.append(note)
        places.append(place)
    packed = list[list[Any]]()
    for (session, keep_for), group in groups.items():
        packed.append([session, keep_for, *group[:3], *(each if any(each) else False for each in group[3:6])])
    return packed, [place for group in groups.values() for place in group[6]], contents


def packed_limited(runs: Sequence[Run], gate_ids: Sequence[bytes], rev: Rev, max_inline: int) -> Grouped:
    """Group runs by their gates for the script `hand_over`."""
    groups: dict[bytes, list[list[Any]]] = {}
    contents, places = dict[bytes, bytes](), dict[bytes, list[int]]()
    for place, (gate_id, run) in enumerate(zip(gate_ids, runs, strict=True)):
        result = run.result
        if is_apart(result, max_inline):
            contents[run.id + rev] = result
            result = reference_to(result, rev)
        fence = run.epoch.to_bytes(8, "big") + run.session + run.claim
        if (group := groups.get(gate_id)) is None:
            group, places[gate_id] = groups.setdefault(gate_id, [[], [], [], [], []]), []
        for values, value in zip(group, (run.id, fence, number_bytes(max(0, run.ran_for)), run.keep_for, result), strict=True):
            values.append(value)
        places[gate_id].append(place)
    return [[gate_id, *group] for gate_id, group in groups.items()], [place for each in places.values() for place in each], contents


def is_possible(run: Run) -> bool:
    """Return True if a store could have issued the run's fence. Any other fence is stale, and may be too large for the script."""
    return len(run.session) == 16 and len(run.claim) == 12 and 0 <= run.epoch < 1 << 53


# --- steps -----------------------------------------------------------------------------------------------------

_FIELDS: Final = {kind: {field.name: field for field in fields} for kind, fields in HEADERS.items()}
_BY_STORE: Final = {kind: [field for field in fields if field.owner is Owner.STORE] for kind, fields in HEADERS.items()}
_BARE: Final = frozenset(kind for kind in HEADERS if not any(index.kind == kind for index in INDEXES) and not _BY_STORE[kind])
"""The kinds without indexes and without fields that the store sets. Scripts store new records of these kinds as they are sent."""

_OF_PLAIN: Final = frozenset({"status", "flags", "priority", "queue", "job", "due_at", "awaits"})
_SESSION_TOPIC: Final = "session:"


class Steps:
    """Packs the steps of a call. `contents` has the large contents to send ahead, by id and revision."""

    def __init__(self, steps: Sequence[Step], rev: Rev, max_inline: int) -> None:
        """Contents above `max_inline` bytes are sent ahead."""
        self._rev, self._max_inline = rev, max_inline
        self._numbers: dict[Ref, int] = {}
        self._news = 0
        self.contents: dict[bytes, bytes] = {}
        self._steps = [self._packed(step) for step in steps]

    def arguments(self) -> list[Any]:
        refs = [value for ref in self._numbers for value in ref]
        return [self._rev, refs, list(self.contents), self._news, self._steps]

    def ref(self, number: int) -> Ref:
        return list(self._numbers)[number - 1]

    def _number(self, ref: Ref) -> int:
        return self._numbers.setdefault(ref, len(self._numbers) + 1)

    def _packed(self, step: Step) -> list[Any]:
        number, numbers, expect, totals = self._number, self._numbers, list[Any](), list[Any]()
        for ref, rev in step.expect.items():
            expect += (numbers.setdefault(ref, len(numbers) + 1), rev)
        for (queue, event), n in step.totals.items():
            totals += (_total_name(queue, event), n)
        return [
            expect,
            [self._put(put, is_new=step.expect.get(put.ref, ABSENT) == ABSENT) for put in step.puts],
            [number(ref) for ref in step.drops],
            [value for ref, _, n, most in step.adds for value in (number(ref), n, False if most is None else most)],
            totals,
            [bytes.fromhex(topic.removeprefix(_SESSION_TOPIC)) if topic.startswith(_SESSION_TOPIC) else topic for topic in step.wakes],
        ]

    def _put(self, put: Put, *, is_new: bool) -> list[Any]:
        kind = put.ref.kind
        if is_new and kind == Kind.JOB and (plain := self._plain_job(put)) is not None:
            return plain
        if is_new and kind in _BARE:
            return [self._number(put.ref), _body_of(put)]
        header, stamps = self._new_header(put) if is_new else _changes(put)
        entries: Any = False
        if put.entries is not None and ENTRIES.get(kind) in put.entries:
            entries = packed_entries(kind, put.entries[ENTRIES[kind]])
        request: Any = False
        if kind == Kind.SESSION and (is_new or (put.restarts and "request" in put.header)):
            request = number_bytes(put.header.get("request") or 0)
        sent = True if put.sent is KEEP else False if put.sent is None else put.sent
        state = True if put.state is KEEP else False if put.state is None else put.state
        return [self._number(put.ref), header, stamps, sent, state, self._content(put), entries, is_new, request]

    def _content(self, put: Put) -> Any:
        content = put.content
        if content is KEEP or content is None:
            return content is KEEP
        if put.ref.kind != Kind.JOB or not is_apart(content, self._max_inline):
            return content
        self.contents[put.ref.id + self._rev] = content
        return reference_to(content, self._rev)

    def _plain_job(self, put: Put) -> list[Any] | None:
        """Pack the put of a new job that is READY at once. Return None if the fixed layout can't hold the job."""
        header, sent = put.header, b"" if put.sent is KEEP or put.sent is None else put.sent
        if (
            header.get("due_at") is not NOW
            or header.get("status", READY) != READY
            or not isinstance(put.content, bytes)
            or put.entries is not None
        ):
            return None
        if header.get("awaits") or not header.keys() <= _OF_PLAIN or put.state not in (KEEP, None):
            return None
        if (flags := header.get("flags", 0)) >= Flag.MARKED:
            return None
        self._news += 1
        queue, content = header["queue"].encode(), self._content(put)
        tail = fixed_tail(queue, header["job"].encode(), None if sent == b"" and put.sent != b"" else sent, content)
        return [self._number(put.ref), flags, header.get("priority", 0), queue, tail]

    def _new_header(self, put: Put) -> tuple[list[Any], list[Any]]:
        """Return the whole header of a new record, and its stamps: the fields that the script fills in."""
        kind = put.ref.kind
        values, stamps, places, fields = list(DEFAULTS[kind]), list[Any](), PLACES[kind], _FIELDS[kind]
        for name, value in put.header.items():
            field = fields[name]
            if type(value) is After:
                stamps += (places[name] + 1, int(value))
            elif field.owner is not Owner.STORE:
                values[places[name]] = field_bytes(field, value)
        for field in _BY_STORE[kind]:
            stamps += (places[field.name] + 1, False if field.name == "seq" else 0)
            self._news += field.name == "seq"
        return values, stamps


def _body_of(put: Put) -> bytes:
    """Return the bytes that follow the revision in a new record: see records.lua."""
    kind = put.ref.kind
    values, places, fields = list(DEFAULTS[kind]), PLACES[kind], _FIELDS[kind]
    for name, value in put.header.items():
        values[places[name]] = field_bytes(fields[name], value)
    header = pack(values)
    parts = [b"\0\0\0\0" if part is KEEP or part is None else _length(len(part) + 1) + part for part in (put.sent, put.state, put.content)]
    return b"".join([_length(len(header)), header, *parts])


_length: Final = struct.Struct(">I").pack


@lru_cache(256)
def _total_name(queue: str, event: str) -> bytes:
    return text_bytes(f"{event}:{queue}")


_WRITTEN: Final = {
    (kind, restarts): {
        field.name: (place, field)
        for place, field in enumerate(fields, 1)
        if field.owner is None or (restarts and field.owner is not Owner.STORE)
    }
    for kind, fields in HEADERS.items()
    for restarts in (False, True)
}
"""The fields that a put writes, by kind and `restarts`, with their places in a header's array, from 1."""


def _changes(put: Put) -> tuple[list[Any], list[Any]]:
    """Return the changed fields of a record, each followed by its value, and its stamps: the fields that the script fills in."""
    values, stamps, written = list[Any](), list[Any](), _WRITTEN[put.ref.kind, put.restarts]
    for name, value in put.header.items():
        if name not in written:
            continue
        place, field = written[name]
        if type(value) is After:
            stamps += (place, int(value))
        else:
            values += (place, field_bytes(field, value))
    return values, stamps


_APPLIED: Final = Applied()


def answer_of(packed: Any, steps: Steps) -> Answer:
    if packed == b"o":
        return _APPLIED
    if isinstance(packed, list):
        return Full(tuple([steps.ref(number) for number in packed]))
    return Stale()
