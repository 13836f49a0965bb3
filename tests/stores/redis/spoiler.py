"""Spoils what a server holds of one job or session: its record, field by field and as a whole, its hash, and its places in the indexes."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import msgpack
import redis

from taskflow.broker.redis.fields import FIELDS
from tests.support.spoiling import Stored, Value

_HIDING: Final = frozenset({"record", "key", "status", "ended_at", "fade_at", "fade", "kept"})

_WAITING: Final = struct.Struct(">BbIIQ6sQH")
_RUNNING: Final = struct.Struct(">BI24sQQH")
_ENDED: Final = struct.Struct(">QQQ")
_PLAIN: Final = b"\x01\x02\x03\x04"


class RedisSpoiler:
    """See `tests.support.spoiling.Spoiler`."""

    def __init__(self, client: redis.Redis, prefix: bytes) -> None:
        self._client: Any = client
        self._prefix = prefix

    # --- what there is -------------------------------------------------------------------------------------------

    def values_of(self, owner: bytes) -> Sequence[Value]:
        found = list(self._of_job(owner)) or list(self._of_session(owner))
        assert found, f"{owner!r} is neither a job nor a session"
        return found

    def _of_job(self, owner: bytes) -> Iterator[Value]:
        record = self._client.get(self._prefix + b"j:" + owner)
        if record is None:
            return
        yield Value("jobs.record", ("record", owner), record)
        yield Value("jobs.key", ("key", owner), owner)
        fields = fields_of(record)
        yield from self._of_fields(owner, fields)
        for column, kind in (("payload", b"b:"), ("result", b"o:")):
            apart = self._client.get(self._prefix + kind + owner)
            if apart is not None:
                yield Value(f"jobs.{column} apart", ("string", kind + owner), apart)
        yield from self._of_names(fields)
        yield from self._of_indexes(owner)

    def _of_fields(self, owner: bytes, fields: Sequence[Any]) -> Iterator[Value]:
        for field, stored in itertools.zip_longest(FIELDS, fields, fillvalue=False):
            yield Value(f"jobs.{field}", ("field", owner, field), None if stored is False else stored)

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        fields = fields_of(self._client.get(self._prefix + b"j:" + job_id))
        return [value for value in self._of_fields(job_id, fields) if value.place != "jobs.seq"]

    def _of_names(self, fields: Sequence[Any]) -> Iterator[Value]:
        """Of its queue and job, if no other job has them."""
        others = list(map(_names_of, self._client.mget(self._keys(b"j:*"))))
        for place in (0, 1):
            number = fields[1 + place]
            if [other[place] for other in others].count(number) == 1:
                text = self._client.hget(self._prefix + b"texts", number)
                yield Value("texts.text", ("hash", b"texts", str(number).encode()), text)
                yield Value("names.number", ("hash", b"names", text), self._client.hget(self._prefix + b"names", text))

    def _of_indexes(self, owner: bytes) -> Iterator[Value]:
        for key in self._keys(b"*"):
            kind = key[len(self._prefix) :].split(b":")[0]
            match self._client.type(key):
                case b"list":
                    for entry in self._client.lrange(key, 0, -1):
                        if entry.endswith(owner):
                            yield Value("jobs.ready", ("list", key, entry), entry)
                case b"zset":
                    for member, score in self._client.zrange(key, 0, -1, withscores=True):
                        if member.endswith(owner):
                            yield Value(f"jobs.{kind.decode()}", ("zset", key, member), score)
                case b"set":
                    if self._client.sismember(key, owner):
                        yield Value(f"jobs.{kind.decode()}", ("set", key, owner), owner)
                case b"hash":
                    for field, stored in self._client.hgetall(key).items():
                        if kind in (b"leases", b"keys") and owner in stored:
                            yield Value(f"jobs.{kind.decode()}", ("hash", key[len(self._prefix) :], field), stored)

    def _of_session(self, owner: bytes) -> Iterator[Value]:
        for field, stored in self._client.hgetall(self._prefix + b"session:" + owner).items():
            yield Value(f"sessions.{field.decode()}", ("hash", b"session:" + owner, field), stored)
        score = self._client.zscore(self._prefix + b"alive", owner)
        if score is not None:
            yield Value("sessions.alive", ("zset", self._prefix + b"alive", owner), score)

    def _keys(self, pattern: bytes) -> list[bytes]:
        escaped = self._prefix.replace(b"[", b"\\[")
        return [key for key in self._client.scan_iter(escaped + pattern, count=1000) if not key[len(self._prefix) :].startswith(b"bad:")]

    # --- what is done to it --------------------------------------------------------------------------------------

    def write(self, value: Value, stored: Stored) -> bool:
        kind, *where = value.address
        try:
            return bool(getattr(self, f"_write_{kind}")(*where, stored))
        except redis.ResponseError:  # a score that is none
            return False

    def _write_record(self, owner: bytes, stored: Stored) -> bool:
        return self._write_string(b"j:" + owner, stored)

    def _write_string(self, name: bytes, stored: Stored) -> bool:
        key = self._prefix + name
        if isinstance(stored, float) and not math.isfinite(stored):  # nothing that a string can hold: a key of another type
            self._client.delete(key)
            return bool(self._client.rpush(key, b"not ours"))
        if stored is None:
            return bool(self._client.delete(key))
        return bool(self._client.set(key, as_bytes(stored)))

    def _write_key(self, owner: bytes, stored: Stored) -> bool:
        if stored is None:
            return False
        return bool(self._client.rename(self._prefix + b"j:" + owner, self._prefix + b"j:" + as_bytes(stored)))

    def _write_field(self, owner: bytes, field: str, stored: Stored) -> bool:
        key = self._prefix + b"j:" + owner
        fields = fields_of(self._client.get(key))
        fields += [False] * (len(FIELDS) - len(fields))
        given = as_bytes(stored) if isinstance(stored, str) else stored
        fields[FIELDS.index(field)] = False if given is None else given
        try:
            packed = msgpack.packb(fields, use_bin_type=False)
        except OverflowError:
            return False
        return bool(self._client.set(key, packed))

    def _write_hash(self, name: bytes, field: bytes, stored: Stored) -> bool:
        key = self._prefix + name
        if stored is None:
            return bool(self._client.hdel(key, field))
        self._client.hset(key, field, as_bytes(stored))
        return True

    def _write_list(self, key: bytes, entry: bytes, stored: Stored) -> bool:
        if stored is None:
            return bool(self._client.lrem(key, 1, entry))
        return bool(self._client.lset(key, self._client.lpos(key, entry), as_bytes(stored)))

    def _write_zset(self, key: bytes, member: bytes, stored: Stored) -> bool:
        if stored is None:
            return bool(self._client.zrem(key, member))
        if isinstance(stored, str | bytes):  # another member
            self._client.zadd(key, {as_bytes(stored): self._client.zscore(key, member)})
            return bool(self._client.zrem(key, member))
        self._client.zadd(key, {member: stored})
        return True

    def _write_set(self, key: bytes, member: bytes, stored: Stored) -> bool:
        if stored is not None:
            self._client.sadd(key, as_bytes(stored))
        return bool(self._client.srem(key, member))

    def may_hide(self, value: Value) -> bool:
        return value.place.removeprefix("jobs.") in _HIDING

    def close(self) -> None:
        self._client.close()


def as_bytes(stored: Stored) -> bytes:
    if isinstance(stored, bytes):
        return stored
    return stored.encode(errors="surrogateescape") if isinstance(stored, str) else repr(stored).encode()


def _names_of(record: bytes | None) -> Sequence[Any]:
    """The numbers of its queue and name, as far as a record that may be spoilt already has them."""
    try:
        return fields_of(record or b"")[1:3]
    except Exception:
        return (None, None)


def fields_of(record: bytes) -> list[Any]:
    """The array that a record is, or that it stands for when it has the fixed layout. See taskflow/broker/redis/fields.py."""
    if record[:1] not in _PLAIN or not record:
        return cast(list[Any], msgpack.unpackb(record, raw=True))
    job: dict[str, Any] = dict.fromkeys(FIELDS, False)
    at = 0
    if record[0] >= 3:
        _, job["epoch"], job["claim"], job["claimed_at"], job["claimed_steady"], length = _RUNNING.unpack_from(record)
        at = _RUNNING.size + length
        job["worker"] = record[_RUNNING.size : at]
    _, job["priority"], job["queue"], job["name"], due, seq, job["created_at"], length = _WAITING.unpack_from(record, at)
    job |= {"status": record[0], "seq": int.from_bytes(seq), "due_at": False if due == job["created_at"] else due}
    at += _WAITING.size
    job["extras"], at = record[at : at + length] or False, at + length
    if record[0] == 4:
        job["ended_at"], ran_for, keep_for = _ENDED.unpack_from(record, at)
        job |= {"settled": record[1:29], "claim": False, "started_at": job["ended_at"] - ran_for, "fade_at": job["ended_at"] + keep_for}
        job["result"] = record[at + _ENDED.size + 4 :]
    else:
        job["payload"] = record[at + 4 :]
    last = max(place for place, field in enumerate(FIELDS) if job[field] is not False)
    return list(job.values())[: last + 1]
