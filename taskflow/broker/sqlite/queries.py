"""Answers queries over one connection, and reads records by their ids."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from functools import cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

from taskflow.broker.engine.records import Index, Kind, Position
from taskflow.broker.engine.seam import Entry, Group, Query, Record, Ref, Scan, Snapshot
from taskflow.broker.sqlite.rows import position_of, position_packing, read_rows, record_packing
from taskflow.broker.sqlite.statements import Statements, filled_up
from taskflow.broker.sqlite.tables import BY_INDEX, TABLES, falling_column, has_own_index, has_seq, index_name, places
from taskflow.model.clock import Clock


class RecordReader:
    """Reads records. It changes nothing."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements, clock: Clock) -> None:
        self.connection, self.sql, self.clock = connection, sql, clock

    def query(self, query: Query) -> Snapshot:
        records: dict[Ref, Record | None] = dict.fromkeys(query.refs)
        records.update(self.records(query.refs, with_content=query.with_content))
        return Snapshot(
            now=self.clock.wall(),
            steady=self.clock.steady(),
            boot=self.clock.boot_id().encode(),
            records=records,
            scans=tuple([self._scan(scan, query.with_content) for scan in query.scans]),
            groups=tuple([self._groups(BY_INDEX[name], prefix) for name, prefix in query.groups]),
            totals=self._totals() if query.with_totals else {},
        )

    def records(self, refs: Iterable[Ref], *, with_content: bool = False) -> dict[Ref, Record]:
        """Return those of the records that exist."""
        by_kind: dict[int, list[tuple[bytes]]] = {}
        for kind, record_id in refs:
            by_kind.setdefault(kind, []).append((record_id,))
        found: dict[Ref, Record] = {}
        for kind, ids in sorted(by_kind.items()):
            packing = record_packing(kind, with_content)
            for size, values in filled_up(ids):
                for row in read_rows(self.connection, self.sql, _load_text(kind), packing, values, size):
                    record = packing.record(self.connection, self.sql, row)
                    found[record.ref] = record
        return found

    # --- scans -----------------------------------------------------------------------------------------------

    def _scan(self, scan: Scan, with_content: bool) -> list[Entry]:
        index = BY_INDEX[scan.of]
        after, until = scan.after or (), scan.until or ()
        prefix = scan.prefix
        shape = _Shape(
            scan.of, len(prefix), _within(prefix, after), len(after), _within(prefix, until), len(until), scan.backwards, scan.with_records
        )
        values: list[Any] = list(prefix)
        for end, is_within in ((after, shape.after_is_within), (until, shape.until_is_within)):
            values += end[len(prefix) :] if is_within else end
        values.append(max(0, scan.limit))
        if scan.with_records:
            packing = record_packing(index.kind, with_content, index.entries)
            entries = list[Entry]()
            for row in read_rows(self.connection, self.sql, _scan_text(shape), packing, values):
                record = packing.record(self.connection, self.sql, row)
                place = position_of(index, record)
                entries.append(Entry((packing.value(row), *place) if index.entries else place, record.ref, record))
        else:
            positions = position_packing(index)
            at = [positions.names.index(name) for name in _position_names(index)]
            id_at = positions.names.index("id")
            rows = read_rows(self.connection, self.sql, _scan_text(shape), positions, values)
            entries = [Entry(tuple([row[place] for place in at]), Ref(index.kind, row[id_at]), None) for row in rows]
        if len(entries) > 1:
            entries.sort(key=_position, reverse=scan.backwards)  # aggregates guarantee no order
        return entries

    # --- groups and totals -----------------------------------------------------------------------------------

    def _groups(self, index: Index, prefix: Position) -> list[Group]:
        if not index.listed:
            rows = self.connection.execute(self.sql[_STATUS_COUNTS]).fetchall()
            if any(n < 0 for _, _, n in rows):  # another program has changed the counted jobs
                rows = self.connection.execute(self.sql[ACTUAL_COUNTS]).fetchall()
            found = [Group((_text(queue), int(_text(what)[1:])), n, None, None) for what, queue, n in rows]
        else:
            text = _counted_groups(index) if index.counted else _first_of_groups(index)
            rows = self.connection.execute(self.sql[text]).fetchall()
            ends = dict[int, Position]()
            numbers = tuple({number for row in rows for number in row[:2]})
            for size, values in filled_up([(number,) for number in numbers]):
                for row in read_rows(self.connection, self.sql, _BY_SEQ, record_packing(index.kind, False), values, size):
                    record = record_packing(index.kind, False).record(self.connection, self.sql, row)
                    ends[record.header["seq"]] = position_of(index, record)
            found = [
                Group(ends[first][: index.groups], size, ends[first], ends[last] if index.counted else None)
                for first, last, size in rows
                if first in ends
            ]
        return sorted(group for group in found if group.prefix[: len(prefix)] == prefix)

    def _totals(self) -> dict[tuple[str, str], int]:
        rows = self.connection.execute(self.sql["""SELECT queue, what, n FROM "~counted" WHERE what NOT LIKE '=%'"""]).fetchall()
        return {(_text(queue), _text(what)): n for queue, what, n in rows}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode(errors="backslashreplace")


_position: Final = attrgetter("position")

_STATUS_COUNTS: Final = """SELECT what, queue, n FROM "~counted" WHERE what >= '=0' AND what <= '=6' AND n <> 0"""
ACTUAL_COUNTS: Final = """SELECT '=' || status AS what, queue, count(*) AS n FROM "~jobs" WHERE status < 7 GROUP BY queue, status"""
_BY_SEQ: Final = 'WITH wanted (seq) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~jobs" AS r ON r.seq = wanted.seq'


@cache
def _load_text(kind: int) -> str:
    return f'WITH wanted (id) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~{TABLES[kind]}" AS r ON r.id = wanted.id'


class _Shape(NamedTuple):
    """Holds the properties of a scan that determine its text. An end `is_within` the prefix if it begins with it."""

    of: str
    prefix: int
    after_is_within: bool
    after: int
    until_is_within: bool
    until: int
    backwards: bool
    with_records: bool


def _within(prefix: Position, end: Position) -> bool:
    return len(end) > len(prefix) and end[: len(prefix)] == prefix


@cache
def _scan_text(shape: _Shape) -> str:
    index = BY_INDEX[shape.of]
    table = TABLES[index.kind]
    at = [f"r.{place}" for place in places(index)]
    source = f'"~{table}" AS r' + (f' INDEXED BY "~{index_name(index)}"' if has_own_index(index) else "")
    if index.entries is not None:
        at = ["e.value", "e.id"]
        source = f'"~{index.name}" AS e CROSS JOIN "~{table}" AS r ON r.id = e.id'
    conditions = [f"{place} = ?" for place in at[: shape.prefix]]
    if index.when:
        conditions.append(f"({index.when})")
    first, last = ("<", ">") if shape.backwards else (">", "<")
    for sign, size, is_within, takes_whole in (
        (first, shape.after, shape.after_is_within, False),
        (last, shape.until, shape.until_is_within, True),
    ):
        if size:
            columns = at[shape.prefix if is_within else 0 : size]
            # a shorter position is before all that begin with it
            is_inclusive = takes_whole if size == len(at) else sign == ">"
            conditions.append(f"({', '.join(columns)}) {sign}{'=' if is_inclusive else ''} ({', '.join('?' * len(columns))})")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = ", ".join(f"{place} {'DESC' if shape.backwards else 'ASC'}" for place in at)
    found = f"FROM {source}{where} ORDER BY {order} LIMIT ?"
    if not shape.with_records:
        columns = [f"r.{name}" if name != "value" else "e.value" for name in position_packing(index).names]
        return f"SELECT @ FROM (SELECT {', '.join(columns)} {found}) AS r"
    # chosen first, so that no long value is read on the way
    key = "seq" if has_seq(index.kind) else "id"
    value = ", e.value" if index.entries is not None else ""
    return f'SELECT @ FROM (SELECT r.{key} AS chosen{value} {found}) AS e CROSS JOIN "~{table}" AS r ON r.{key} = e.chosen'


def _position_names(index: Index) -> list[str]:
    names = [falling_column(name[1:]) if name[0] == "-" else name for name in index.at]
    return names if index.entries is None else ["value", *names]


@cache
def _counted_groups(index: Index) -> str:
    """Return the statement that reads each group's first and last row, and its size."""
    assert index.kind == Kind.JOB
    columns, own = list(places(index)), f'INDEXED BY "~{index_name(index)}"'
    grouped, rest = columns[: index.groups], columns[index.groups :]
    same = " AND ".join(f"r.{name} = g.{name}" for name in grouped)

    def end(direction: str) -> str:
        order = ", ".join(f"r.{name} {direction}" for name in rest)
        return f'(SELECT r.seq FROM "~jobs" AS r {own} WHERE ({index.when}) AND {same} ORDER BY {order} LIMIT 1)'

    names = ", ".join(grouped)
    counted = f'SELECT {names}, count(*) AS n FROM "~jobs" {own} WHERE ({index.when}) GROUP BY {names}'
    return f"SELECT {end('ASC')}, {end('DESC')}, g.n FROM ({counted}) AS g"


@cache
def _first_of_groups(index: Index) -> str:
    """Return the statement that reads each group's first row, without the others."""
    assert index.kind == Kind.JOB
    columns, own = list(places(index)), f'"~jobs" AS r INDEXED BY "~{index_name(index)}"'
    grouped = columns[: index.groups]
    names, order = ", ".join(grouped), ", ".join(f"r.{name}" for name in columns)
    of_row, of_former = ", ".join(f"r.{name}" for name in grouped), ", ".join(f"former.{name}" for name in grouped)
    return f"""\
WITH RECURSIVE former (seq, {names}) AS (
  SELECT * FROM (SELECT r.seq, {of_row} FROM {own} WHERE ({index.when}) ORDER BY {order} LIMIT 1)
  UNION ALL
  SELECT next.seq, {", ".join(f"next.{name}" for name in grouped)} FROM former CROSS JOIN "~jobs" AS next ON next.seq = (
    SELECT r.seq FROM {own} WHERE ({index.when}) AND ({of_row}) > ({of_former}) ORDER BY {order} LIMIT 1
  )
)
SELECT seq, seq, 0 FROM former"""
