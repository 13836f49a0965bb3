"""Spoils what a server holds of one job or session: its record, part by part and as a whole.

Indexes do not repair themselves. So no part is spoilt that an index is made of, and a whole record only so that it cannot be read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgpack
import redis

from taskflow.broker.engine.records import HEADERS, RUNNING, Kind
from taskflow.broker.redis.records import UNREADABLE, record_of
from tests.support.spoiling import Stored, Value

_PARTS: Final = ("sent", "state", "content")
_NUMBERS: Final = ("expires_at", "awaits", "epoch", "claimed_at", "claimed_steady", "started_at", "ended_at", "fade_at")
_SPOILT: Final = ("epoch", "claimed_at", "claimed_steady", "started_at", "worker", "settled", *_PARTS)
_HIDING: Final = frozenset({"record", "epoch"})
"""A job that cannot be read is set aside when it is met, and then stands under another status."""

_OF_SESSIONS: Final = ("name", "ttl", "is_released", "wants_ends")
_BIAS: Final = 1 << 63


class RedisSpoiler:
    """See `tests.support.spoiling.Spoiler`."""

    def __init__(self, client: redis.Redis, prefix: bytes) -> None:
        self._client: Any = client
        self._prefix = prefix

    def values_of(self, owner: bytes) -> Sequence[Value]:
        stored = self._client.get(self._prefix + b"j:" + owner)
        if stored is not None:
            return [Value("jobs.record", ("record", b"j:" + owner), stored), *self.columns_of(owner), *self._apart(owner)]
        stored = self._client.get(self._prefix + b"s:" + owner)
        assert stored is not None, f"{owner!r} is neither a job nor a session"
        header = _session_header(stored)
        values = [Value(f"sessions.{name}", ("session", owner, name), header[name]) for name in _OF_SESSIONS]
        return [*values, Value("sessions.record", ("record", b"s:" + owner), stored)]

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        record = record_of(Kind.JOB, job_id, self._client.get(self._prefix + b"j:" + job_id), with_content=True)
        if record.damage is not None:
            return []
        return [
            Value(f"jobs.{name}", ("part", job_id, name), part)
            for name, part in {**record.header, **_parts(record)}.items()
            if name in _SPOILT
        ]

    def _apart(self, owner: bytes) -> Sequence[Value]:
        keys = self._client.scan_iter(self._prefix.replace(b"[", b"\\[") + b"c:*", count=1000)
        return [Value("jobs.content apart", ("string", key), self._client.get(key)) for key in keys if owner in key]

    def write(self, value: Value, stored: Stored) -> bool:
        kind, *where = value.address
        return bool(getattr(self, f"_write_{kind}")(*where, stored))

    def _write_record(self, key: bytes, stored: Stored) -> bool:
        """Write a record that cannot be read: another one might disagree with the indexes."""
        if not isinstance(stored, bytes | str):
            return False
        raw = as_bytes(stored)
        kind = Kind.JOB if key[:2] == b"j:" else Kind.SESSION
        read = record_of(kind, key[2:], raw if kind == Kind.JOB else raw + bytes(8), with_content=True)
        if not raw or not (read.damage or "").startswith(UNREADABLE):
            return False
        return bool(self._client.set(self._prefix + key, raw))

    def _write_string(self, key: bytes, stored: Stored) -> bool:
        return bool(self._client.delete(key) if stored is None else self._client.set(key, as_bytes(stored)))

    def _write_part(self, job_id: bytes, name: str, stored: Stored) -> bool:
        key = self._prefix + b"j:" + job_id
        record = record_of(Kind.JOB, job_id, self._client.get(key), with_content=True)
        values = {**record.header, **_parts(record)}
        if type(stored) is not type(values[name]) and not (stored is None or values[name] is None):
            return False
        try:
            return bool(self._client.set(key, packed(record.rev, {**values, name: stored})))
        except (struct.error, OverflowError, TypeError, AttributeError):  # no value of the field's type
            return False

    def _write_session(self, owner: bytes, name: str, stored: Stored) -> bool:
        key = self._prefix + b"s:" + owner
        raw = self._client.get(key)
        length = int.from_bytes(raw[9:13], "big")
        values = msgpack.unpackb(raw[13 : 13 + length], raw=True)
        place = [field.name for field in HEADERS[Kind.SESSION]].index(name)
        if isinstance(stored, int) and isinstance(values[place], bytes):
            if not -_BIAS <= stored < _BIAS:
                return False
            stored = (stored + _BIAS).to_bytes(8, "big")
        values[place] = False if stored is None else as_bytes(stored) if isinstance(stored, str) else stored
        header = msgpack.packb(values, use_bin_type=False) or b""
        return bool(self._client.set(key, raw[:9] + struct.pack(">I", len(header)) + header + raw[13 + length :]))

    def may_hide(self, value: Value) -> bool:
        return value.place.removeprefix("jobs.") in _HIDING

    def close(self) -> None:
        self._client.close()


def _parts(record: Any) -> dict[str, Any]:
    return {part: getattr(record, part) for part in _PARTS}


def _session_header(stored: bytes) -> dict[str, Any]:
    return record_of(Kind.SESSION, bytes(16), stored + bytes(8), with_content=False).header


def as_bytes(stored: Stored) -> bytes:
    if isinstance(stored, bytes):
        return stored
    return stored.encode(errors="surrogateescape") if isinstance(stored, str) else repr(stored).encode()


def packed(rev: bytes, values: dict[str, Any]) -> bytes:
    """Return a record that is not in the fixed layout: see taskflow/broker/redis/records.lua."""
    queue, job = values["queue"].encode(), values["job"].encode()
    ends = [as_bytes(values["worker"]) if values["worker"] is not None else None, values["settled"], values["cause"], None]
    ends += [values["state"], values["content"]]
    numbers = [0 if values[name] is None else values[name] + _BIAS for name in _NUMBERS]
    lease = (values["session"], values["claim"]) if values["status"] == RUNNING else (b"", b"")
    sent = values["sent"]
    return b"".join(
        [
            bytes([64 + values["status"]]) + rev,
            struct.pack(
                ">HBQQQ", values["flags"], values["priority"] + 128, *(values[name] + _BIAS for name in ("due_at", "seq", "created_at"))
            ),
            struct.pack(">HHI", len(queue), len(job), 0 if sent is None else len(sent) + 1) + queue + job + (sent or b""),
            struct.pack(">8Q16s12sHHHIII", *numbers, *lease, *(0 if part is None else len(part) + 1 for part in ends)),
            *(part or b"" for part in ends),
        ]
    )
