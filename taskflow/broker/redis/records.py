"""Decodes stored records: see records.lua. Stores large payloads and results under separate keys, so that no script reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgpack

from taskflow.broker.engine.job import Job
from taskflow.broker.engine.records import BURIED, FAILED, HEADERS, RUNNING, SCHEDULED, Flag, Kind, Type
from taskflow.broker.engine.seam import Record, Ref
from taskflow.broker.redis.connections import Command, ConnectionPool
from taskflow.broker.redis.layout import (
    DEFAULTS,
    MARK,
    MEMBER_BYTES,
    REFERENCE_BYTES,
    RUNNING_BYTES,
    SINCE_BYTES,
    WAITING_BYTES,
    number_bytes,
    number_in,
)
from taskflow.model.job_schema import LARGE
from taskflow.model.limits import GATE_ID_BYTES
from taskflow.model.record import Record as JobRecord
from taskflow.model.stored_values import LATEST, MAX_RAW

# --- records ---------------------------------------------------------------------------------------------------------


def is_reference(content: bytes) -> bool:
    """Return True if the content is a reference to content stored separately: see `Contents`."""
    return len(content) == REFERENCE_BYTES and content.startswith(MARK)


UNREADABLE: Final = "record\t"
"""The beginning of the damage text of a record that can't be read at all."""

REV: Final = slice(1, 9)
GENERAL: Final = 64
"""The first byte of a record outside the fixed layout is at least this."""

_BIAS: Final = 1 << 63
_WAITING: Final = struct.Struct(">9xHBQQQHHI")
_LEASED: Final = struct.Struct(">9xQ16s12sQQH")
_ENDED: Final = struct.Struct(">QQQ")
_LENGTH: Final = struct.Struct(">I")
_NO_PART: Final = bytes(4)
_JOB_DEFAULTS: Final = {field.name: field.default for field in HEADERS[Kind.JOB]}
_FIELDS: Final = {kind: tuple((field.name, field.type, field.default is None) for field in fields) for kind, fields in HEADERS.items()}
_REQUEST_BYTES: Final = 8


def record_of(kind: int, record_id: bytes, stored: bytes, *, with_content: bool) -> Record:
    """Decode a stored record. Unreadable parts are listed in its `damage`."""
    request = b""
    if kind == Kind.SESSION:
        stored, request = stored[:-_REQUEST_BYTES], stored[-_REQUEST_BYTES:]
    ref, rev = Ref(kind, record_id), stored[REV]
    try:
        first = stored[0]
        if kind == Kind.NOTE and (note := _note(ref, rev, stored)) is not None:
            return note
        if first >= GENERAL:
            return _job(ref, rev, stored, with_content) if kind == Kind.JOB else _general(ref, rev, stored, request, with_content)
        header = dict(_JOB_DEFAULTS)
        at = 0 if first < RUNNING else _read_lease(stored, first, header)
        names, sent, at = read_waiting(stored, at, header)
        header["status"] = first
        if first > RUNNING:
            ended_at, fade_at, ran_for = _ENDED.unpack_from(stored, at)
            at += _ENDED.size
            header |= {"ended_at": ended_at - _BIAS, "fade_at": fade_at - _BIAS, "started_at": ended_at - ran_for}
        if first == BURIED:
            sent, content = None, None
        else:
            content = stored[at:] if with_content else None
        return Record(ref, rev, header, sent, None, content, _take_names(header, names))
    except Exception:  # another program may have written any bytes
        return unreadable(ref, stored)


def unreadable(ref: Ref, stored: bytes) -> Record:
    """Return a placeholder for a record that can't be read. A job's placeholder is FAILED."""
    header = {field.name: field.default for field in HEADERS[ref.kind]}
    if ref.kind == Kind.JOB:
        header |= {"status": FAILED, "queue": "?", "job": "?", "ended_at": 0, "fade_at": LATEST, "cause": bytes(8)}
    return Record(ref, stored[REV], header, damage=UNREADABLE + repr(stored[:64]))


def ended_record(job_id: bytes, stored: bytes) -> JobRecord | None:
    """Return the record of an ended job. Return None if the waiter has to read the job, because its record wasn't sent, is unreadable,
    isn't kept, or has its content stored separately."""
    if not stored:
        return None
    record = record_of(Kind.JOB, job_id, stored, with_content=True)
    header = record.header
    if record.damage or not RUNNING < header["status"] < BURIED or header["fade_at"] <= header["ended_at"]:
        return None
    return None if record.content is not None and is_reference(record.content) else Job.of_record(record).to_record()


def _read_lease(stored: bytes, status: int, header: dict[str, Any]) -> int:
    """Read into `header` the lease of a job that is or was running. Return the offset of its part for waiting jobs."""
    epoch, session, claim, claimed_at, claimed_steady, worker_bytes = _LEASED.unpack_from(stored)
    at: int = RUNNING_BYTES + worker_bytes
    header["epoch"], header["worker"] = epoch, _worker_name(stored[RUNNING_BYTES:at])
    header["claimed_at"], header["claimed_steady"] = claimed_at - _BIAS, claimed_steady - _BIAS
    if status == RUNNING:
        header["session"], header["claim"] = session, claim
    else:
        header["settled"] = stored[9 : 9 + 36] + b"\0"
    return at


def read_waiting(stored: bytes, at: int, header: dict[str, Any]) -> tuple[bytes, bytes | None, int]:
    """Read into `header` the parts of a waiting job, which begin at `at`. Return its names, its `sent`, and the offset of its content."""
    flags, priority, due_at, seq, created_at, queue, job, sent = _WAITING.unpack_from(stored, at)
    names_at = at + WAITING_BYTES
    sent_at = names_at + queue + job
    header["flags"], header["priority"] = flags, priority - 128
    header["due_at"], header["seq"], header["created_at"] = due_at - _BIAS, seq - _BIAS, created_at - _BIAS
    names = stored[at + WAITING_BYTES - 8 : at + WAITING_BYTES - 6] + stored[names_at:sent_at]
    if flags & Flag.MEMBER and stored[at] < GENERAL:
        header["member"] = stored[sent_at : sent_at + MEMBER_BYTES]
        sent_at += MEMBER_BYTES
    body = stored[sent_at : sent_at + sent - 1] if sent else None
    if body and flags & Flag.ADMITTED:
        since = int.from_bytes(body[:SINCE_BYTES], "big")
        header["since"], body = since - _BIAS if since else None, body[SINCE_BYTES:] or None
    return names, body, sent_at + max(0, sent - 1)


@lru_cache(4096)
def names_in(names: bytes) -> tuple[str, str]:
    queue_ends = 2 + int.from_bytes(names[:2], "big")
    return names[2:queue_ends].decode(), names[queue_ends:].decode()


def _take_names(header: dict[str, Any], names: bytes) -> str | None:
    """Set the names of the queue and the job. Return the damage if a name can't be decoded, or None."""
    try:
        header["queue"], header["job"] = names_in(names)
        return None
    except UnicodeDecodeError:
        queue_ends = 2 + int.from_bytes(names[:2], "big")
        raw = {"queue": names[2:queue_ends], "job": names[queue_ends:]}
        header.update({name: each.decode(errors="backslashreplace") for name, each in raw.items()})
        return "\n".join(f"{name}\t{header[name]}" for name, each in raw.items() if header[name].encode() != each)


_EXTRA: Final = struct.Struct(">8Q16s12sHHHHHIII")
_AT_A_GATE: Final = b"".join([bytes(8), 2 * number_bytes(0), bytes(68), bytes(7), bytes([GATE_ID_BYTES + 1]), bytes(10)])
"""The beginning of the extra part (`_EXTRA`) of a job that waits at a gate and has no other extra fields: see records.lua."""

_NUMBERS: Final = ("expires_at", "awaits", "epoch", "claimed_at", "claimed_steady", "started_at", "ended_at", "fade_at")


def _job(ref: Ref, rev: bytes, stored: bytes, with_content: bool) -> Record:
    """Decode a job that isn't stored in the fixed layout."""
    header: dict[str, Any] = dict(_JOB_DEFAULTS)
    names, sent, at = read_waiting(stored, 0, header)
    if stored[0] == GENERAL + SCHEDULED and stored.startswith(_AT_A_GATE, at):  # a fast path, because many such jobs are read at once
        content_at = at + _EXTRA.size + GATE_ID_BYTES
        header["status"], header["gate"] = SCHEDULED, stored[at + _EXTRA.size : content_at]
        if len(stored) == content_at + int.from_bytes(stored[at + len(_AT_A_GATE) : at + _EXTRA.size], "big") - 1:
            return Record(ref, rev, header, sent, None, stored[content_at:] if with_content else None, _take_names(header, names))
    extra = _EXTRA.unpack_from(stored, at)
    session, claim = extra[len(_NUMBERS) : len(_NUMBERS) + 2]
    for name, number in zip(_NUMBERS, extra, strict=False):
        header[name] = number - _BIAS if number else _JOB_DEFAULTS[name]
    status = header["status"] = stored[0] - GENERAL
    if status == RUNNING:
        header["session"], header["claim"] = session, claim
    at += _EXTRA.size
    parts = list[bytes | None]()
    for size in extra[len(_NUMBERS) + 2 :]:
        parts.append(stored[at : at + size - 1] if size else None)
        at += size - 1 if size else 0
    worker, header["settled"], header["cause"], header["gate"], header["member"], _, state, content = parts
    header["worker"] = None if worker is None else _worker_name(worker)
    needed = ("claimed_steady",) if status == RUNNING else ("ended_at", "fade_at") if status > RUNNING else ()
    if at != len(stored) or status > BURIED or None in map(header.get, needed):
        return unreadable(ref, stored)
    return Record(ref, rev, header, sent, state, content if with_content else None, _take_names(header, names))


_NOTE: Final = struct.Struct(">9xI2sQII")
_NOTE_HEADER: Final = (10, b"\x91\xa8")
"""The length of a note's header, and its first bytes: an array of one number in 8 bytes."""


def _note(ref: Ref, rev: bytes, stored: bytes) -> Record | None:
    """Decode a note (a result for an awaiting job) kept in `state`. Return None for any other note. This is faster than `_general`."""
    length, begin, size, sent, state = _NOTE.unpack_from(stored)
    end = _NOTE.size + state - 1
    if (length, begin) != _NOTE_HEADER or sent or not state or stored[end:] != b"\0\0\0\0":
        return None
    return Record(ref, rev, {"size": size - _BIAS}, None, stored[_NOTE.size : end])


def _general(ref: Ref, rev: bytes, stored: bytes, request: bytes, with_content: bool) -> Record:
    at = 13 + _LENGTH.unpack_from(stored, 9)[0]
    packed = stored[13:at]
    found = _gate_header(packed) if ref.kind == Kind.GATE else _header(ref.kind, packed)
    if found is None:
        return unreadable(ref, stored)
    header = dict(found)
    if ref.kind == Kind.SESSION:
        header["request"] = number_in(request)
    if stored[at : at + 4] == stored[-4:] == _NO_PART and _LENGTH.unpack_from(stored, at + 4)[0] == len(stored) - at - 11:
        return Record(ref, rev, header, None, stored[at + 8 : -4])  # most records have only a state
    parts = list[bytes | None]()
    for _ in range(3):
        size = _LENGTH.unpack_from(stored, at)[0]
        at += 4
        parts.append(stored[at : at + size - 1] if size else None)
        at += max(0, size - 1)
    if at != len(stored):
        return unreadable(ref, stored)
    sent, state, content = parts
    return Record(ref, rev, header, sent, state, content if with_content else None)


def _header(kind: int, packed: bytes) -> dict[str, Any] | None:
    """Decode a header. Return None if its fields aren't as declared, because another program wrote it."""
    values = msgpack.unpackb(packed, raw=True)
    if len(values) != len(DEFAULTS[kind]):
        return None
    header = dict[str, Any]()
    for (name, of_type, is_optional), value in zip(_FIELDS[kind], values, strict=False):
        if value is False and is_optional:
            header[name] = None
        elif of_type is Type.SMALL and type(value) is int:
            header[name] = value
        elif not isinstance(value, bytes) or of_type is Type.SMALL or (of_type is Type.NUMBER and len(value) != 8):
            return None
        elif of_type is Type.NUMBER:
            header[name] = number_in(value)
        elif of_type is Type.NAME:
            header[name] = value.decode(errors="surrogatepass")
        else:
            header[name] = bytes(value)
    return header


@lru_cache(1024)
def _gate_header(packed: bytes) -> dict[str, Any] | None:
    """Decode the header of a gate. The cache helps because many gates have equal headers, which don't contain their names."""
    return _header(Kind.GATE, packed)


def _worker_name(raw: bytes) -> str:
    """Decode a worker's name, which may contain lone surrogates. If another program wrote other bytes, escape the invalid ones."""
    try:
        return raw.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return raw.decode(errors="backslashreplace")


# --- large contents --------------------------------------------------------------------------------------------------

# Large contents are sent ahead of the call that writes their records, and expire unless that call keeps them. So a call that never arrives
# leaves nothing behind. The key consists of the job's id and the revision that the call writes, so no other call uses it. Records hold
# references; this module fetches the bytes.

INLINE: Final = 512
"""Payloads of up to this many bytes stay in their jobs. Storing a payload separately saves server time: adding, claiming and settling a job
with 10 KB takes 110 µs inline and 23 µs separately. But a single job then starts one round trip later."""

INLINE_RESULT: Final = 2_048
"""Results of up to this many bytes stay in their jobs: a waiting caller receives such a result with the message that the job has ended."""

EXPIRES_IN: Final = 600
"""Seconds after which content expires if its call has not arrived."""

FETCHED_AT_ONCE: Final = 4 * 1024 * 1024
"""The approximate maximum number of bytes that one command fetches."""


def is_apart(content: bytes, most: int = INLINE) -> bool:
    """Return True if the content must be stored separately, because it has more than `most` bytes or looks like a reference."""
    size = len(content)
    return size > most or (size == REFERENCE_BYTES and content.startswith(MARK))


def reference_to(content: bytes, rev: bytes) -> bytes:
    return MARK + len(content).to_bytes(4, "big") + rev


def ahead(prefix: bytes, contents: Mapping[bytes, bytes]) -> list[Command]:
    """Return the commands that store contents, keyed by id and revision. If a call is resent, they do not replace stored contents (NX)."""
    return [("SET", prefix + key, content, "NX", "EX", EXPIRES_IN) for key, content in contents.items()]


class Contents:
    """Fetches and deletes the payloads and results that are stored under one key prefix."""

    def __init__(self, pool: Callable[[], ConnectionPool], prefix: str) -> None:
        """`pool` is a function that returns the running event loop's connections."""
        self._pool = pool
        self.prefix = f"{prefix}c:".encode()

    async def forget(self, contents: Mapping[bytes, bytes]) -> None:
        """Delete contents that were sent ahead of a call that failed."""
        if contents:
            await self._pool().ask("UNLINK", *(self.prefix + key for key in contents))

    async def fill(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with contents in place of references. Missing or damaged content is listed as damage."""
        sizes = {_key(each): int.from_bytes(each.content[2:6], "big") for each in records if each.content and is_reference(each.content)}
        if not sizes:
            return list(records)
        last = [*sizes][-1]
        found = dict[bytes, bytes | None]()
        portion, size = list[bytes](), 0
        for key in sizes:
            if sizes[key] <= LARGE:
                portion.append(key)
                size += sizes[key]
            if portion and (size >= FETCHED_AT_ONCE or key == last):
                # GETRANGE includes the end: the extra byte reveals a content longer than its recorded size
                fetches = [("GETRANGE", self.prefix + each, 0, sizes[each]) for each in portion]
                found |= zip(portion, await self._pool().ask_each(fetches), strict=True)
                portion, size = [], 0
        is_apart = [each.content is not None and is_reference(each.content) for each in records]
        return [
            _filled(each, found.get(_key(each)), sizes[_key(each)]) if apart else each
            for each, apart in zip(records, is_apart, strict=True)
        ]


def _key(record: Record) -> bytes:
    """Return the key, after "c:", of content that is stored separately."""
    assert record.content is not None
    return record.ref.id + record.content[6:]


def _filled(record: Record, content: bytes | None, size: int) -> Record:
    if content is not None and len(content) == size:
        return record._replace(content=content)
    got = "more" if content is not None and len(content) > size else len(content or b"")
    problem = f"content\texpected {size} bytes, got {got}: {(content or b'')[:MAX_RAW]!r}"
    return record._replace(content=content or None, damage="\n".join(filter(None, (record.damage, problem))))
