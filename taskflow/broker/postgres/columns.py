"""Packs the changes of steps into the columns that the SQL functions take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.engine.records import HEADERS, RUNNING, Kind
from taskflow.broker.engine.seam import KEEP, After, Put, Ref, Rev, Step
from taskflow.broker.postgres.changes import AFTER_BASE, RESTARTS, WHOLE, put_columns, put_fields
from taskflow.broker.postgres.tables import TABLES

_PLACES: Final = {kind: {field.name: at for at, field in enumerate(put_fields(kind))} for kind in HEADERS}
_ALL: Final = {kind: (1 << len(places)) - 1 for kind, places in _PLACES.items()}
_WIDTH: Final = len(put_columns(Kind.JOB))
_WHOLE: Final = len(WHOLE)


class Changes:
    """Collects the changes of steps in the columns that apply() takes: see apply.sql. `ended` has the jobs that each step ends."""

    def __init__(self, steps: Sequence[tuple[int, Step]]) -> None:
        self._jobs = list[tuple[Any, ...]]()
        self._other_jobs = list[tuple[Any, ...]]()
        self._keys = list[tuple[Any, ...]]()
        self._adds = list[tuple[Any, ...]]()
        self._totals = dict[tuple[str, str, int], bytearray]()
        self._bytes = (steps[-1][0] >> 3) + 1
        self._others: dict[str, list[dict[str, Any]]] = {}
        self._entries = list[tuple[int, str, str, list[str]]]()
        self.ended: dict[int, list[bytes]] = {}
        for number, step in steps:
            self._take(number, step)

    def _take(self, number: int, step: Step) -> None:
        left = dict(step.expect)
        for put in step.puts:
            self._put(number, put, _number(left.pop(put.ref)))
        for ref in step.drops:
            self._name(number, ref, _number(left.pop(ref)), 2)
        for ref, rev in left.items():
            self._name(number, ref, _number(rev), 0)
        for each in step.adds:
            self._adds.append((number, each.ref.id, each.n, each.most))
        for (queue, event), n in step.totals.items():
            of_steps = self._totals.setdefault((queue, str(event), n), bytearray(self._bytes))
            of_steps[number >> 3] |= 1 << (number & 7)

    def _put(self, number: int, put: Put, old: Any) -> None:
        kind, record_id = put.ref
        for index, entries in (put.entries or {}).items():
            shown = [entry if isinstance(entry, str) else entry.hex() for entry in entries]
            self._entries.append((number, index, record_id.hex(), shown))
        if kind == Kind.KEY:
            self._keys.append((number, record_id, old, put.header.get("holder"), put.header.get("next"), 1))
            return
        values, kept = _values(kind, put)
        parts = [put.sent, put.state, put.content]
        left = (put.sent is KEEP) + 2 * (put.state is KEEP) + 4 * (put.content is KEEP)
        bodies = [None if part is KEEP else part for part in parts]
        if kind == Kind.JOB:
            self._jobs.append((number, record_id, old, kept, left, *values, *bodies))
            if put.header.get("status", 0) > RUNNING:
                self.ended.setdefault(number, []).append(record_id)
        else:
            texts = [_storable(value) if isinstance(value, str) else value for value in values]
            row = dict(zip(put_columns(kind), (number, record_id, old, kept, left, *texts, *bodies), strict=True))
            if kind == Kind.SESSION and (old is None or put.restarts) and "request" in put.header:
                row["request"] = put.header["request"]
            self._others.setdefault(TABLES[kind], []).append({**row, "does": 1})

    def _name(self, number: int, ref: Ref, old: Any, does: int) -> None:
        if ref.kind == Kind.JOB:
            self._other_jobs.append((number, ref.id, old, does == 2))
            if does == 2:
                self.ended.setdefault(number, []).append(ref.id)
        elif ref.kind == Kind.KEY:
            self._keys.append((number, ref.id, old, None, None, does))
        else:
            self._others.setdefault(TABLES[ref.kind], []).append({"step": number, "id": ref.id, "old": old, "does": does})

    def arguments(self) -> list[Any]:
        ended = [job_id for ids in self.ended.values() for job_id in ids]
        jobs = _columns(self._jobs, _WIDTH)
        return [
            *jobs[:_WHOLE],
            *map(collapsed, jobs[_WHOLE:]),
            *_columns(self._other_jobs, 4),
            *_columns(self._keys, 6),
            *_columns(self._adds, 4),
            *_columns([(*name, bytes(steps)) for name, steps in self._totals.items()], 4),
            json.dumps(self._others, default=bytes.hex) if self._others else None,
            json.dumps(self._entries) if self._entries else None,
            ended,
        ]


def _values(kind: int, put: Put) -> tuple[list[Any], int]:
    """Return the values of the fields that a put writes, and the bits of those that it leaves alone."""
    places = _PLACES[kind]
    values: list[Any] = [None] * len(places)
    kept = _ALL[kind] | (RESTARTS if put.restarts else 0)
    for name, value in put.header.items():
        at = places.get(name)
        if at is not None:
            values[at] = value + AFTER_BASE if type(value) is After else value
            kept ^= 1 << at
    return values, kept


def _storable(name: str) -> str:
    """Escape the characters that PostgreSQL cannot store as text: lone surrogates and NUL. A machine's name may consist of any bytes."""
    return name.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def collapsed(column: list[Any]) -> list[Any]:
    """Reduce a column to one element if all its elements are equal: the driver takes a third of a microsecond for each."""
    return column[:1] if column and column.count(column[0]) == len(column) else column


def trimmed(column: list[Any]) -> list[Any]:
    """Return an empty column if it has no values: unnest() pads it."""
    return [] if column.count(None) == len(column) else column


def _number(rev: Rev) -> int | None:
    return int.from_bytes(rev, "big", signed=True) if rev else None
