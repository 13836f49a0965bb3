"""Reads records: answers queries over one connection, and fetches many records as one row.

Numbers and names arrive as JSON, and byte values as a single concatenation. statements.py explains why.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from taskflow.broker.engine.records import HEADERS, TABLES, Index, Kind, Position, Type
from taskflow.broker.engine.seam import Entry, Group, Query, Record, Ref, Rev, Scan, Snapshot
from taskflow.broker.sqlite.statements import Statements, filled_up, row_of
from taskflow.broker.sqlite.tables import BY_INDEX, PARTS, falling_column, has_own_index, has_seq, index_name, places
from taskflow.model.clock import Clock
from taskflow.model.job_schema import LARGE, SMALL


class RecordReader:
    """Reads records, and changes nothing."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements, clock: Clock) -> None:
        self.connection, self.sql, self.clock = connection, sql, clock

    def query(self, query: Query) -> Snapshot:
        records: dict[Ref, Record | None] = dict.fromkeys(query.refs)
        records.update(self.records(query.refs, with_content=query.with_content, fields=query.fields))
        return Snapshot(
            now=self.clock.wall(),
            steady=self.clock.steady(),
            boot=self.clock.boot_id().encode(),
            records=records,
            scans=self._scans(query),
            groups=tuple([self._groups(BY_INDEX[name], prefix) for name, prefix in query.groups]),
            totals=self._totals() if query.with_totals else {},
        )

    def records(self, refs: Iterable[Ref], *, with_content: bool = False, fields: tuple[str, ...] = ()) -> dict[Ref, Record]:
        """Return the records that exist among those with these refs, by ref."""
        by_kind: dict[int, list[tuple[bytes]]] = {}
        for kind, record_id in refs:
            by_kind.setdefault(kind, []).append((record_id,))
        found: dict[Ref, Record] = {}
        for kind, ids in sorted(by_kind.items()):
            packing = record_packing(kind, with_content, fields=fields)
            for size, values in filled_up(ids):
                for row in read_rows(self.connection, self.sql, _load_text(kind), packing, values, size):
                    record = packing.record(self.connection, self.sql, row)
                    found[record.ref] = record
        return found

    # --- scans -----------------------------------------------------------------------------------------------

    def _scans(self, query: Query) -> tuple[list[Entry], ...]:
        """Return the entries of each scan. Simple scans that differ only in their prefixes share a statement."""
        scans = query.scans
        alike: dict[tuple[object, ...], list[int]] = {}
        for number, scan in enumerate(scans):
            alike.setdefault((scan.of, scan.limit, len(scan.prefix), *scan[3:]), []).append(number)
        found = [list[Entry]()] * len(scans)
        for numbers in alike.values():
            first = scans[numbers[0]]
            if len(numbers) > 1 and first == Scan(*first[:3]) and first.prefix and BY_INDEX[first.of].entries is None:
                by_prefix = self._scan_together(first, [scans[number].prefix for number in numbers], query)
                for number in numbers:
                    found[number] = by_prefix[scans[number].prefix]
            else:
                for number in numbers:
                    found[number] = self._scan(scans[number], query)
        return tuple(found)

    def _scan_together(self, scan: Scan, prefixes: Sequence[Position], query: Query) -> dict[Position, list[Entry]]:
        """Return the entries of a scan with each of these prefixes."""
        index, width = BY_INDEX[scan.of], len(scan.prefix)
        text, whole = _shared_scan_text(scan.of, width), record_packing(index.kind, query.with_content, fields=query.fields)
        found: dict[Position, list[Entry]] = {prefix: [] for prefix in prefixes}
        for size, values in filled_up([*found]):
            for row in read_rows(self.connection, self.sql, text, whole, (*values, max(0, scan.limit)), size):
                record = whole.record(self.connection, self.sql, row)
                place = position_of(index, record)
                found[place[:width]].append(Entry(place, record.ref, record))
        for entries in found.values():
            entries.sort(key=_position)
        return found

    def _scan(self, scan: Scan, query: Query) -> list[Entry]:
        index = BY_INDEX[scan.of]
        width, ends, values = len(scan.prefix), list[tuple[int, bool]](), list[Any](scan.prefix)
        for end in (scan.after or (), scan.until or ()):
            is_within = len(end) > width and end[:width] == scan.prefix
            values += end[width:] if is_within else end
            ends.append((len(end), is_within))
        values.append(max(0, scan.limit))
        text = _scan_text(scan.of, width, tuple(ends), scan.backwards, scan.with_records)
        if scan.with_records:
            whole = record_packing(index.kind, query.with_content, index.entries, query.fields)
            entries = list[Entry]()
            for row in read_rows(self.connection, self.sql, text, whole, values):
                record = whole.record(self.connection, self.sql, row)
                place = position_of(index, record)
                entries.append(Entry((whole.value(row), *place) if index.entries else place, record.ref, record))
        else:
            packing, at = position_packing(index)
            id_at = packing.names.index("id")
            rows = read_rows(self.connection, self.sql, text, packing, values)
            entries = [Entry(tuple([row[place] for place in at]), Ref(index.kind, row[id_at]), None) for row in rows]
        if len(entries) > 1:
            entries.sort(key=_position, reverse=scan.backwards)  # aggregates guarantee no order
        return entries

    # --- groups and totals -----------------------------------------------------------------------------------

    def _groups(self, index: Index, prefix: Position) -> list[Group]:
        if not index.listed:
            rows = self.connection.execute(self.sql[_STATUS_COUNTS]).fetchall()
            found = [Group((_text(queue), int(_text(what)[1:])), n, None, None) for what, queue, n in rows]
        else:
            text = _counted_groups(index) if index.counted else _first_of_groups(index)
            rows = self.connection.execute(self.sql[text]).fetchall()
            ends, (packing, at) = dict[int, Position](), position_packing(index)
            seq_at = packing.names.index("seq")
            numbers = tuple({number for row in rows for number in row[:2]})
            for size, values in filled_up([(number,) for number in numbers]):
                for row in read_rows(self.connection, self.sql, _BY_SEQ, packing, values, size):
                    ends[row[seq_at]] = tuple([row[place] for place in at])
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

_STATUS_COUNTS: Final = """SELECT what, queue, n FROM "~counted" WHERE what >= '=0' AND what <= '=6' AND n > 0"""
ACTUAL_COUNTS: Final = """SELECT '=' || status AS what, queue, count(*) AS n FROM "~jobs" WHERE status < 7 GROUP BY queue, status"""
_BY_SEQ: Final = 'WITH wanted (seq) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~jobs" AS r ON r.seq = wanted.seq'


@cache
def _load_text(kind: int) -> str:
    return f'WITH wanted (id) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~{TABLES[kind]}" AS r ON r.id = wanted.id'


@cache
def _scan_text(of: str, prefix: int, ends: tuple[tuple[int, bool], ...], backwards: bool, with_records: bool) -> str:
    """Return a scan's SQL. `prefix` is the prefix's length; `ends` has those of `after` and `until`, and whether they start with it."""
    index = BY_INDEX[of]
    table = TABLES[index.kind]
    at = [f"r.{place}" for place in places(index)]
    source = f'"~{table}" AS r' + (f' INDEXED BY "~{index_name(index)}"' if has_own_index(index) else "")
    if index.entries is not None:
        at = ["e.value", "e.id"]
        source = f'"~{index.name}" AS e CROSS JOIN "~{table}" AS r ON r.id = e.id'
    conditions = [f"{place} = ?" for place in at[:prefix]]
    if index.when:
        conditions.append(f"({index.when})")
    for sign, takes_whole, (size, is_within) in zip(("<", ">") if backwards else (">", "<"), (False, True), ends, strict=True):
        if size:
            columns = at[prefix if is_within else 0 : size]
            # a shorter position precedes all positions that begin with it
            is_inclusive = takes_whole if size == len(at) else sign == ">"
            conditions.append(f"({', '.join(columns)}) {sign}{'=' if is_inclusive else ''} ({', '.join('?' * len(columns))})")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = ", ".join(f"{place} {'DESC' if backwards else 'ASC'}" for place in at)
    found = f"FROM {source}{where} ORDER BY {order} LIMIT ?"
    if not with_records:
        columns = [f"r.{name}" if name != "value" else "e.value" for name in position_packing(index)[0].names]
        return f"SELECT @ FROM (SELECT {', '.join(columns)} {found}) AS r"
    # rows are chosen first, so that no long value is read needlessly
    key = "seq" if has_seq(index.kind) else "id"
    value = ", e.value" if index.entries is not None else ""
    return f'SELECT @ FROM (SELECT r.{key} AS chosen{value} {found}) AS e CROSS JOIN "~{table}" AS r ON r.{key} = e.chosen'


@cache
def _shared_scan_text(of: str, width: int) -> str:
    """Return the SQL of a scan that is made with each prefix of a list, and returns whole records. The prefixes have `width` fields."""
    index = BY_INDEX[of]
    table, key, at = TABLES[index.kind], "seq" if has_seq(index.kind) else "id", [f"e.{place}" for place in places(index)]
    own = f' INDEXED BY "~{index_name(index)}"' if has_own_index(index) else ""
    fields = [f"field{number}" for number in range(width)]
    conditions = [f"{place} = {field}" for place, field in zip(at, fields, strict=False)] + ([f"({index.when})"] if index.when else [])
    chosen = f'SELECT e.{key} FROM "~{table}" AS e{own} WHERE {" AND ".join(conditions)} ORDER BY {", ".join(at)} LIMIT ?'
    wanted = f"WITH wanted ({', '.join(fields)}) AS (VALUES {row_of(width)})"
    return f'{wanted} SELECT @ FROM wanted CROSS JOIN "~{table}" AS r ON r.{key} IN ({chosen})'


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
    """Return the statement that reads only each group's first row."""
    assert index.kind == Kind.JOB
    columns, own = list(places(index)), f'"~jobs" AS r INDEXED BY "~{index_name(index)}"'
    grouped = columns[: index.groups]
    names, order = ", ".join(grouped), ", ".join(f"r.{name}" for name in columns)

    def next_by(place: int) -> str:
        """Return a subquery for the first row that equals `former` in the columns before this one, and is greater in this one. With a row
        value, SQLite would use the index for the first column only, and read all rows that are equal in it."""
        conditions = [f"r.{name} = former.{name}" for name in grouped[:place]] + [f"r.{grouped[place]} > former.{grouped[place]}"]
        return f"(SELECT r.seq FROM {own} WHERE ({index.when}) AND {' AND '.join(conditions)} ORDER BY {order} LIMIT 1)"

    following = ", ".join(next_by(place) for place in reversed(range(index.groups)))
    return f"""\
WITH RECURSIVE former (seq, {names}) AS (
  SELECT * FROM (SELECT r.seq, {", ".join(f"r.{name}" for name in grouped)} FROM {own} WHERE ({index.when}) ORDER BY {order} LIMIT 1)
  UNION ALL
  SELECT next.seq, {", ".join(f"next.{name}" for name in grouped)} FROM former CROSS JOIN "~jobs" AS next
    ON next.seq = coalesce({following}, NULL)
)
SELECT seq, seq, 0 FROM former"""


# --- rows ------------------------------------------------------------------------------------------------------

MAX_TOGETHER: Final = 65_536
"""The maximum size in bytes of a value that is read together with others. A longer value is read separately."""

_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode


class _TooLong(int):
    """The size in bytes of a value that must be read separately. It takes the value's place until then."""

    __slots__ = ()


class Packing:
    """Packs the columns of many rows into a single row in SQL, and unpacks it. In the unpacked rows, columns of bytes come last."""

    def __init__(self, columns: Sequence[tuple[str, Type]]) -> None:
        plain = [(name, of_type) for name, of_type in columns if of_type is not Type.BYTES]
        large = [name for name, of_type in columns if of_type is Type.BYTES]
        self.names = [name for name, _ in plain] + large
        self._texts = [place for place, (_, of_type) in enumerate(plain) if of_type is Type.NAME]
        self._number = len(plain)
        self.select = _select([name for name, _ in plain], large)

    def unpack(self, packed: bytes, joined: bytes | None) -> list[list[Any]]:
        """Return the rows. A row is longer than usual if one of its values must be read separately, or is damaged."""
        at, joined = 0, joined or b""
        try:
            rows = _decode(packed)
        except (msgspec.DecodeError, UnicodeDecodeError):
            rows = self._decode_damaged(packed)
        places = range(self._number, len(self.names))
        for row in rows:
            for place in places:
                size = row[place]
                if size is None:
                    continue
                if size >= 0:
                    row[place] = joined[at : (end := at + size)]
                    at = end
                else:
                    row[place] = _TooLong(-1 - size)
                    row.append(None)
        return rows

    def _decode_damaged(self, packed: bytes) -> list[list[Any]]:
        """Decode the rows, and escape bytes that aren't UTF-8. A list of the positions of such texts is appended to their row."""
        rows: list[list[Any]] = json.loads(packed.decode(errors="surrogateescape"), strict=False)
        for row in rows:
            damaged = list[int]()
            for place in self._texts:
                raw = (row[place] or "").encode(errors="surrogateescape")
                if (text := raw.decode(errors="backslashreplace")) != (row[place] or ""):
                    row[place] = text
                    damaged.append(place)
            if damaged:
                row.append(damaged)
        return rows


def _select(plain: Sequence[str], large: Sequence[str]) -> str:
    values = [f"r.{name}" for name in large]
    items = [f"r.{name}" for name in plain]
    items += [f"iif(length({value}) > {MAX_TOGETHER}, -1 - length({value}), length({value}))" for value in values]
    parts = [f"iif(length({value}) <= {MAX_TOGETHER}, {value}, x'')" for value in values]
    joined = f"CAST(group_concat({' || '.join(parts)}, '') AS BLOB)" if parts else "NULL"
    return f"CAST(json_group_array(json_array({', '.join(items)})) AS BLOB), {joined}"


def read_rows(
    connection: sqlite3.Connection, sql: Statements, text: str, packing: Packing, values: Sequence[object], size: int | None = None
) -> list[list[Any]]:
    """Run a statement in which @ stands for the columns, and return its rows. With `size`, the list of values in it has this many rows."""
    statement = text.replace("@", packing.select)
    placed = sql[statement] if size is None else sql.of_rows(statement, size)
    [(packed, joined)] = connection.execute(placed, tuple(values)).fetchall()
    return packing.unpack(packed, joined)


# --- records ------------------------------------------------------------------------------------------------------


_ALWAYS_READ: Final = ("seq", "status", "queue", "awaits")
"""The fields of a job that a change of it needs."""


class RecordPacking(Packing):
    """Packs and unpacks records of one kind. With `with_content`, rows include the content. With `entries`, they include the value of an
    index entry, which has that type. With `fields`, the headers of jobs have only these fields and those that are always read."""

    def __init__(self, kind: int, with_content: bool, entries: Type | None, fields: tuple[str, ...]) -> None:
        header = [field for field in HEADERS[kind] if kind != Kind.JOB or not fields or field.name in (*fields, *_ALWAYS_READ)]
        columns = [("rev", Type.NUMBER), *[(field.name, field.type) for field in header], ("id", Type.BYTES)]
        columns += [(part, Type.BYTES) for part in (PARTS if with_content else PARTS[:2])]
        if entries is not None:
            columns.append(("value", entries))
        super().__init__(columns)
        self._kind, self._with_content, self._width = kind, with_content, len(self.names)
        self._entry_value = self.names.index("value") if entries is not None else None
        self._named = [(field.name, self.names.index(field.name)) for field in header]
        self._id = self.names.index("id")
        self._sent = self.names.index("sent")
        self._rev = self.names.index("rev")
        if entries is not None:
            self.select = self.select.replace("r.value", "e.value")

    def record(self, connection: sqlite3.Connection, sql: Statements, row: list[Any]) -> Record:
        damage = self._whole(connection, sql, row) if len(row) > self._width else None
        content = row[self._sent + 2] if self._with_content else None
        header = {name: row[place] for name, place in self._named}
        ref = Ref(self._kind, row[self._id])
        return Record(ref, rev_of(row[self._rev]), header, row[self._sent], row[self._sent + 1], content, damage)

    def value(self, row: list[Any]) -> Any:
        assert self._entry_value is not None
        return row[self._entry_value]

    def _whole(self, connection: sqlite3.Connection, sql: Statements, row: list[Any]) -> str | None:
        """Read the long values of a row, and put them into the row. Return the damage found there, one line for each value, or None."""
        damage = [f"{self.names[place]}\t{row[place]}" for places in row[self._width :] for place in places or ()]
        for place, value in enumerate(row[: self._width]):
            if type(value) is not _TooLong:
                continue
            name, row[place] = self.names[place], None
            is_part_of_job = self._kind == Kind.JOB and name != "content"
            if value > (SMALL if is_part_of_job else LARGE if name in PARTS else 0):  # so large a value was written by another program
                damage.append(f"{name}\t{int(value)} bytes")
            else:
                statement = f'SELECT {name} FROM "~{TABLES[self._kind]}" WHERE id = ?'
                [(row[place],)] = connection.execute(sql[statement], (row[self._id],)).fetchall()
        return "\n".join(damage) or None


@cache
def record_packing(kind: int, with_content: bool, entries: Type | None = None, fields: tuple[str, ...] = ()) -> RecordPacking:
    return RecordPacking(kind, with_content, entries, fields)


@cache
def position_packing(index: Index) -> tuple[Packing, list[int]]:
    """Return the `Packing` that reads an index's positions, and the places of a position's parts in its rows. The rows also have the
    record's id, and its number if the store numbers such records."""
    names = [falling_column(name[1:]) if name[0] == "-" else name for name in index.at]
    types = {field.name: field.type for field in HEADERS[index.kind]} | {"id": Type.BYTES}
    columns = {name: types[field.removeprefix("-")] for name, field in zip(names, index.at, strict=True)}
    if index.entries is not None:
        names, columns = ["value", *names], {"value": index.entries, **columns}
    packing = Packing(list((columns | {name: types[name] for name in ("seq", "id") if name in types}).items()))
    return packing, [packing.names.index(name) for name in names]


def position_of(index: Index, record: Record) -> Position:
    """Return the position of a record in an index, without the entry's value."""
    header = record.header
    return tuple([record.ref.id if field == "id" else -header[field[1:]] if field[0] == "-" else header[field] for field in index.at])


def rev_of(number: int) -> Rev:
    """Convert a revision from a number in a table to the bytes that the engine uses."""
    return (number & _ALL_BITS).to_bytes(8, "big")


_ALL_BITS: Final = (1 << 64) - 1
