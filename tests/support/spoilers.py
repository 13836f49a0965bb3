"""Corrupts what a store holds of one job or session, bypassing its broker. See `tests.support.spoiling.Spoiler`."""

from __future__ import annotations

import sqlite3
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
import psycopg
import redis
from psycopg import rows

from taskflow.broker.engine.records import HEADERS, RUNNING, Kind
from taskflow.broker.redis.records import UNREADABLE, record_of
from tests.support.spoiling import Stored, Value

_HIDING: Final = frozenset({"id", "status", "ended_at", "fade_at", "queue"})
"""Columns whose change may hide an ended job: those are listed queue by queue, and counts do not know a queue that another program has
written."""


class SqlSpoiler(ABC):
    """Corrupts values through SQL, with any values that the columns and the tables' checks allow."""

    _connection: Any

    @abstractmethod
    def _row(self, table: str, owner: bytes) -> Mapping[str, Any] | None: ...

    @abstractmethod
    def _is_spoilt(self, table: str, column: str) -> bool: ...

    @abstractmethod
    def _of_id(self, owner: bytes) -> str:
        """Return a session's id in SQL."""

    @abstractmethod
    def _update(self, table: str, column: str, stored: Stored, where: str) -> bool: ...

    def values_of(self, owner: bytes) -> Sequence[Value]:
        for table in ("jobs", "sessions"):
            if (row := self._row(table, owner)) is not None:
                where = f"seq = {row['seq']}" if table == "jobs" else f"id = {self._of_id(owner)}"
                columns = [(column, stored) for column, stored in row.items() if self._is_spoilt(table, column)]
                return [Value(f"{table}.{column}", (table, column, where), stored) for column, stored in columns]
        raise AssertionError(f"{owner!r} is in no table")

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        return [value for value in self.values_of(job_id) if value.place.startswith("jobs.") and value.address[1] != "id"]

    def write(self, value: Value, stored: Stored) -> bool:
        try:
            return self._update(*value.address[:2], stored, value.address[2])  # type: ignore[call-arg, arg-type]
        except (sqlite3.Error, psycopg.Error):  # not a value of the column's type, or a violated constraint
            return False

    def may_hide(self, value: Value) -> bool:
        return value.address[1] in _HIDING

    def close(self) -> None:
        self._connection.close()


class SqliteSpoiler(SqlSpoiler):
    def __init__(self, path: Path, namespace: str = "taskflow") -> None:
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        self._connection.row_factory = sqlite3.Row
        self._prefix = namespace

    def _row(self, table: str, owner: bytes) -> Mapping[str, Any] | None:
        row = self._connection.execute(f'SELECT * FROM "{self._prefix}_{table}" WHERE id = ?', (owner,)).fetchone()
        return None if row is None else dict(row)

    def _is_spoilt(self, table: str, column: str) -> bool:
        return not column.startswith("falling_") and column != ("seq" if table == "jobs" else "id")

    def _of_id(self, owner: bytes) -> str:
        return f"x'{owner.hex()}'"

    def _update(self, table: str, column: str, stored: Stored, where: str) -> bool:
        parameter = "CAST(? AS TEXT)" if isinstance(stored, str) else "?"
        given = stored.encode(errors="surrogateescape") if isinstance(stored, str) else stored
        self._connection.execute(f'UPDATE "{self._prefix}_{table}" SET "{column}" = {parameter} WHERE {where}', (given,))
        return True


_TYPES: Final = """
    SELECT relname, attname, format_type(atttypid, NULL) AS kind FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = %s::regnamespace AND relname IN ('jobs', 'sessions') AND attnum > 0 AND attidentity = ''
        AND NOT (relname = 'sessions' AND attname = 'id')
"""


class PostgresSpoiler(SqlSpoiler):
    def __init__(self, url: str, schema: str) -> None:
        connect: Any = psycopg.connect
        self._connection = connect(url, autocommit=True, row_factory=rows.dict_row)
        self._schema = schema
        self._types: dict[tuple[str, str], str] = {}

    def _row(self, table: str, owner: bytes) -> Mapping[str, Any] | None:
        row: Mapping[str, Any] | None = self._connection.execute(
            f'SELECT * FROM "{self._schema}".{table} WHERE id = %s', [owner]
        ).fetchone()
        return row

    def _is_spoilt(self, table: str, column: str) -> bool:
        if not self._types:  # the schema exists by now
            found = self._connection.execute(_TYPES, [f'"{self._schema}"'])
            self._types = {(row["relname"], row["attname"]): row["kind"] for row in found}
        return (table, column) in self._types

    def _of_id(self, owner: bytes) -> str:
        return f"'\\x{owner.hex()}'"

    def _update(self, table: str, column: str, stored: Stored, where: str) -> bool:
        if isinstance(stored, str) and any(0xD800 <= ord(sign) <= 0xDFFF or sign == "\0" for sign in stored):
            return False  # a UTF-8 database does not accept it as text
        literal = _literal(stored, self._types[table, column])
        done = self._connection.execute(f'UPDATE "{self._schema}".{table} SET {column} = {literal} WHERE {where}')
        return bool(done.rowcount == 1)


def _literal(stored: Stored, kind: str) -> str:
    """Return a literal of the column's type, if there is such a value: PostgreSQL refuses all others."""
    if stored is None:
        return "NULL"
    if isinstance(stored, bytes):
        return f"'\\x{stored.hex()}'::bytea"
    if isinstance(stored, str) and kind == "bytea":
        return f"'\\x{stored.encode().hex()}'::bytea"
    quoted = str(stored).replace("'", "''")
    return f"'{quoted}'::{kind}"


_PARTS: Final = ("sent", "state", "content")
_NUMBERS: Final = ("expires_at", "awaits", "epoch", "claimed_at", "claimed_steady", "started_at", "ended_at", "fade_at")
_SPOILT: Final = ("epoch", "claimed_at", "claimed_steady", "started_at", "worker", "settled", *_PARTS)
_SET_ASIDE: Final = frozenset({"record", "epoch"})
"""Parts whose change makes a job unreadable. Such a job is set aside when it is read, and then has another status."""

_OF_SESSIONS: Final = ("name", "ttl", "is_released", "wants_ends")
_BIAS: Final = 1 << 63


class RedisSpoiler:
    """Corrupts a record, part by part and as a whole.

    Indexes do not repair themselves. So parts that an index is built from are left intact, and a whole record is only made unreadable.
    """

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
        """Write a record that cannot be read, because a readable one might disagree with the indexes."""
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
        except (struct.error, OverflowError, TypeError, AttributeError):  # not a value of the field's type
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
        return value.place.removeprefix("jobs.") in _SET_ASIDE

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
    ends = [as_bytes(values["worker"]) if values["worker"] is not None else None]
    ends += [*(values[name] for name in ("settled", "cause", "gate", "member")), None, values["state"], values["content"]]
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
            struct.pack(">8Q16s12sHHHHHIII", *numbers, *lease, *(0 if part is None else len(part) + 1 for part in ends)),
            *(part or b"" for part in ends),
        ]
    )
