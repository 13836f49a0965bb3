"""Applies the engine's steps over one connection, within a transaction that holds the write lock."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from taskflow.broker import topics
from taskflow.broker.engine.records import READY, RUNNING, TABLES, Kind, Type
from taskflow.broker.engine.seam import (
    ABSENT,
    KEEP,
    Addition,
    After,
    Answer,
    Applied,
    Apply,
    Full,
    Put,
    Query,
    Record,
    Ref,
    Snapshot,
    Stale,
    Step,
    refuse_repeated,
)
from taskflow.broker.sqlite.counts import READY_OF, Counts
from taskflow.broker.sqlite.queries import Packing, read_rows, rev_of
from taskflow.broker.sqlite.statements import Statements, change_rows, filled_up, insert_rows, row_of
from taskflow.broker.sqlite.tables import ENTRIES, FIELDS, RESTARTED, WRITTEN, has_seq
from taskflow.model.clock import Clock


class Known(NamedTuple):
    """Columns of a stored record that a change needs. `key` identifies the row: its `seq`, or the record's id. Only jobs use the rest."""

    rev: bytes
    key: int | bytes
    status: int = 0
    queue: str = ""
    awaits: int = 0


_JOB: Final = Packing(
    [("rev", Type.NUMBER), ("seq", Type.NUMBER), ("status", Type.SMALL), ("queue", Type.NAME), ("awaits", Type.NUMBER), ("id", Type.BYTES)]
)
_OTHER: Final = Packing([("rev", Type.NUMBER), ("id", Type.BYTES)])
_NUMBERED: Final = Packing([("rev", Type.NUMBER), ("seq", Type.NUMBER), ("id", Type.BYTES)])

Shape = tuple[int, tuple[str, ...]]
"""A kind of records, and the columns that are written."""


class RecordChanger(Counts):
    """Changes records. What it reads within an operation stays valid until the operation ends, because the write lock is held."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements, clock: Clock, capacity: int | None) -> None:
        super().__init__(connection, sql, clock, capacity)
        self._known: dict[Ref, Known | None] = {}
        self._coming = 0
        """The number of new live jobs in the current steps."""
        self._moves: dict[tuple[str, int | None, str, int], int] = {}
        """The number of jobs that the current steps move, by queue and status before and after the move."""

    def query(self, query: Query) -> Snapshot:
        if query.groups or query.with_totals:
            self.flush()
        seen = super().query(query)
        for ref, record in seen.records.items():
            self._known[ref] = None if record is None else _known(record)
        for entries in seen.scans:
            for _, ref, record in entries:
                if record is not None:
                    self._known[ref] = _known(record)
        return seen

    def forget(self) -> None:
        """Clear the cache of records. Called when an operation begins, and when one has failed."""
        self._known.clear()

    # --- steps -----------------------------------------------------------------------------------------------

    def apply(self, apply: Apply) -> tuple[list[Answer], Snapshot | None]:
        refuse_repeated(apply.steps)
        self._coming = 0
        self._learn(ref for step in apply.steps for ref in (*step.expect, *(each.ref for each in step.adds)))
        answers, applied, sums = list[Answer](), list[Step](), Counter[tuple[Ref, str]]()
        for step in apply.steps:
            answer = self._answer(step, apply.grows, sums)
            answers.append(answer)
            if isinstance(answer, Applied):
                applied.append(step)
                for ref, field, n, _ in step.adds:
                    sums[ref, field] += n
        if applied:
            self._apply_all(applied)
        return answers, None if apply.then is None else self.query(apply.then)

    def _learn(self, refs: Iterable[Ref]) -> None:
        unknown = {ref for ref in refs if ref not in self._known}
        if not unknown:
            return
        by_kind: dict[int, list[tuple[bytes]]] = {}
        for ref in unknown:
            self._known[ref] = None
            by_kind.setdefault(ref.kind, []).append((ref.id,))
        for kind, ids in sorted(by_kind.items()):
            packing = _JOB if kind == Kind.JOB else _NUMBERED if has_seq(kind) else _OTHER
            text = f'WITH wanted (id) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~{TABLES[kind]}" AS r ON r.id = wanted.id'
            for size, values in filled_up(ids):
                for row in read_rows(self.connection, self.sql, text, packing, values, size):
                    if kind == Kind.JOB:
                        rev, seq, status, queue, awaits, record_id = row[:6]
                        self._known[Ref(kind, record_id)] = Known(rev_of(rev), seq, status, queue, awaits)
                    else:
                        self._known[Ref(kind, row[-1])] = Known(rev_of(row[0]), row[-2] if has_seq(kind) else row[-1])

    def _answer(self, step: Step, grows: bool, sums: Mapping[tuple[Ref, str], int]) -> Answer:
        """Check if a step can be applied, and return its answer. The steps before it aren't applied yet; `sums` has their additions."""
        known = self._known
        stale = tuple([ref for ref, rev in step.expect.items() if (ABSENT if (at := known[ref]) is None else at.rev) != rev])
        if stale:
            return Stale(stale)
        if step.adds and any(each.most is not None for each in step.adds) and (past := self._past_bounds(step.adds, sums)):
            return Full(past)
        if grows and self._capacity is not None:
            new = [put for put in step.puts if put.ref.kind == Kind.JOB and known[put.ref] is None]
            coming = self._coming + sum(put.header.get("status", READY) <= RUNNING for put in new)
            message = self.room_for(coming)
            if message is not None:
                return Full(says=message)
            self._coming = coming
        return _APPLIED

    def _past_bounds(self, adds: Sequence[Addition], sums: Mapping[tuple[Ref, str], int]) -> tuple[Ref, ...]:
        past, here = dict[Ref, None](), Counter[tuple[Ref, str]]()
        for ref, field, n, most in adds:
            known = self._known[ref]
            if known is not None:
                here[ref, field] += n
                if most is not None and known.awaits + sums.get((ref, field), 0) + here[ref, field] > most:
                    past[ref] = None
        return tuple(past)

    def _apply_all(self, steps: Sequence[Step]) -> None:
        rev, now = new_rev(), self.clock.wall()
        inserts: dict[Shape, list[tuple[Any, ...]]] = {}
        updates: dict[Shape, list[tuple[Any, ...]]] = {}
        drops: dict[int, list[Ref]] = {}
        totals: dict[tuple[str, str], int] = {}
        entries: dict[str, list[tuple[bytes, tuple[str | bytes, ...]]]] = {}
        for step in steps:
            for put in step.puts:
                self._prepare(put, now, inserts, updates)
                if put.entries:
                    for name, values in put.entries.items():
                        entries.setdefault(name, []).append((put.ref.id, values))
            for ref in step.drops:
                drops.setdefault(ref.kind, []).append(ref)
            for place, n in step.totals.items():
                totals[place] = totals.get(place, 0) + n
            if step.wakes:
                self.wake(step.wakes)
        for (queue, event), n in totals.items():
            self.count(queue, str(event), n)
        for (was_queue, was, queue, status), n in self._moves.items():
            self.count_move(was_queue, was, None, n)
            self.count_move(queue, None, status, n)
        self._moves.clear()
        for kind, refs in drops.items():
            self._drop(kind, refs)
        for (kind, columns), rows in updates.items():
            change_rows(self.connection, self.sql, _update_text(kind, columns), rows, (rev,))
        for (kind, columns), rows in inserts.items():
            stamped = [(rev, now, *row) for row in rows] if "created_at" in FIELDS[kind] else [(rev, *row) for row in rows]
            insert_rows(self.connection, self.sql, _insert_text(kind, columns), stamped)
        for name, changed in entries.items():
            self._replace_entries(name, changed)
        self._add(steps)
        for step in steps:
            for put in step.puts:
                self._known.pop(put.ref, None)
            for ref in step.drops:
                self._known[ref] = None

    def wake(self, wakes: Iterable[str]) -> None:
        for topic in wakes:
            if topic == topics.DUE:
                self.announcement.is_due = True
            else:
                self.announcement.woken.add(topic)

    def _prepare(
        self, put: Put, now: int, inserts: dict[Shape, list[tuple[Any, ...]]], updates: dict[Shape, list[tuple[Any, ...]]]
    ) -> None:
        """Add a put's values to the rows of `inserts` or `updates` for the same columns, and record a job's move."""
        (kind, record_id), known, header, parts = put.ref, self._known[put.ref], put.header, put[2:5]
        columns, written = _columns(kind, known is None or put.restarts, tuple(header), *[part is not KEEP for part in parts])
        values = [now + value if type(value) is After else value for value in header.values()]
        if written is not None:
            values = [value for value, is_written in zip(values, written, strict=True) if is_written]
        values += [part for part in parts if part is not KEEP]
        if kind not in (Kind.JOB, Kind.KEY):  # other programs may have written numbers so large that a sum overflows
            values = [min(max(value, -_END), _END) if isinstance(value, int) else value for value in values]
        if kind == Kind.SESSION and "name" in header:
            at = columns.index("name")
            values[at] = str(values[at]).encode(errors="backslashreplace").decode()  # a host name may contain any bytes
        shape = (kind, columns)
        if known is None:
            inserts.setdefault(shape, []).append((record_id, *values))
        else:
            updates.setdefault(shape, []).append((known.key, *values))
        if kind == Kind.JOB:
            self._record_move(put.ref, known, header)

    def _record_move(self, ref: Ref, known: Known | None, header: Mapping[str, Any]) -> None:
        """Record a job's change of status or queue, to be counted and announced."""
        was, was_queue = (None, "") if known is None else (known.status, known.queue)
        status, queue = header.get("status", READY if was is None else was), header.get("queue", was_queue)
        if (status, queue) != (was, was_queue):
            move = (was_queue, was, queue, status)
            self._moves[move] = self._moves.get(move, 0) + 1
        if status == READY != was:
            self.announcement.ready[queue] += 1
        elif status > RUNNING and (was is None or was <= RUNNING):
            self.announcement.ended.add(ref.id)

    def _drop(self, kind: int, refs: Sequence[Ref]) -> None:
        rows = list[tuple[Any]]()
        for ref in refs:
            known = self._known[ref]
            if known is None:
                continue
            rows.append((known.key,))
            if kind == Kind.JOB:
                self.count_move(known.queue, known.status, None)
                if known.status <= RUNNING:
                    self.announcement.ended.add(ref.id)
            elif kind == Kind.QUEUE:  # no longer paused
                self.flush()
                queue = ref.id.decode(errors="replace")
                [(ready,)] = self.connection.execute(self.sql[READY_OF], (queue,)).fetchall()
                if ready:
                    self.announcement.ready[queue] += ready
        key = "seq" if has_seq(kind) else "id"
        change_rows(self.connection, self.sql, f'DELETE FROM "~{TABLES[kind]}" WHERE {key} IN (VALUES (?) ...)', rows)
        for index in ENTRIES[kind]:
            ids: list[tuple[Any]] = [(ref.id,) for ref in refs]
            change_rows(self.connection, self.sql, f'DELETE FROM "~{index.name}" WHERE id IN (VALUES (?) ...)', ids)

    def _replace_entries(self, name: str, changed: Sequence[tuple[bytes, tuple[str | bytes, ...]]]) -> None:
        ids: list[tuple[Any]] = [(record_id,) for record_id, _ in changed]
        change_rows(self.connection, self.sql, f'DELETE FROM "~{name}" WHERE id IN (VALUES (?) ...)', ids)
        rows = [(value, record_id) for record_id, values in changed for value in values]
        insert_rows(self.connection, self.sql, f'INSERT INTO "~{name}" (value, id) VALUES (?, ?) ...', rows)

    def _add(self, steps: Sequence[Step]) -> None:
        sums = Counter[tuple[int, str, bytes]]()
        for step in steps:
            for ref, field, n, _ in step.adds:
                sums[ref.kind, field, ref.id] += n
        self.add_numbers(sums)

    def add_numbers(self, sums: Mapping[tuple[int, str, bytes], int]) -> None:
        """Add numbers to fields of records. `sums` has the numbers by kind, field and id."""
        for kind, field in {name[:2] for name in sums}:
            rows = [(record_id, n) for (of_kind, name, record_id), n in sums.items() if (of_kind, name) == (kind, field)]
            text = (
                f'WITH v (id, n) AS (VALUES (?, ?) ...) UPDATE "~{TABLES[kind]}" AS r '
                f"SET {field} = min(max({field}, {-_MAX_SUM}), {_MAX_SUM}) + v.n FROM v WHERE r.id = v.id"
            )
            change_rows(self.connection, self.sql, text, rows)
            for record_id, _ in rows:
                self._known.pop(Ref(kind, record_id), None)


_MAX_SUM: Final = 1 << 61
"""Before an addition, larger stored numbers are lowered to this one, so that sums stay within 64 bits. Only other programs write them."""

_END: Final = (1 << 63) - 1
_APPLIED: Final = Applied()


def _known(record: Record) -> Known:
    header = record.header
    if record.ref.kind == Kind.JOB:
        return Known(record.rev, header["seq"], header["status"], header["queue"], header["awaits"])
    return Known(record.rev, header["seq"] if has_seq(record.ref.kind) else record.ref.id)


def new_rev() -> int:
    """Return a new revision, as a random number of 63 bits."""
    return int.from_bytes(os.urandom(8), "big") >> 1


@cache
def _columns(
    kind: int, writes_all: bool, names: tuple[str, ...], state: bool, sent: bool, content: bool
) -> tuple[tuple[str, ...], tuple[bool, ...] | None]:
    """Return the columns that a put writes, and a flag for each header value: True if it's written. If all are, None replaces the flags."""
    allowed = (RESTARTED if writes_all else WRITTEN)[kind]
    written = tuple([name in allowed for name in names])
    parts = [part for part, is_given in (("state", state), ("sent", sent), ("content", content)) if is_given]
    return (*[name for name in names if name in allowed], *parts), None if all(written) else written


@cache
def _insert_text(kind: int, columns: tuple[str, ...]) -> str:
    stamped = ["rev", "created_at"] if "created_at" in FIELDS[kind] else ["rev"]
    names = [*stamped, "id", *columns]
    return f'INSERT INTO "~{TABLES[kind]}" ({", ".join(names)}) VALUES {row_of(len(names))}'


@cache
def _update_text(kind: int, columns: tuple[str, ...]) -> str:
    key = "seq" if has_seq(kind) else "id"
    values = ", ".join(["rev = ?", *(f"{name} = v.{name}" for name in columns)])
    names = ", ".join([f"{key}_of", *columns])
    rows = row_of(1 + len(columns))
    return f'WITH v ({names}) AS (VALUES {rows}) UPDATE "~{TABLES[kind]}" AS r SET {values} FROM v WHERE r.{key} = v.{key}_of'
