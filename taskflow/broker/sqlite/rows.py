"""Reads many records in one row: their numbers and names as JSON, their bytes one after another. See statements.py for the reason."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import msgspec

from taskflow.broker.engine.records import HEADERS, Index, Kind, Position, Type
from taskflow.broker.engine.seam import Record, Ref, Rev
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.tables import PARTS, TABLES, falling_column
from taskflow.model.job_schema import LARGE, SMALL

MOST_TOGETHER: Final = 65_536
"""The maximum size in bytes of a value that is read together with others. A longer one is read alone."""

_decode: Final = msgspec.json.Decoder(list[list[Any]]).decode


class TooLong(int):
    """Stands for a value that is to be read alone: its size in bytes."""

    __slots__ = ()


class Packing:
    """A list of columns to read. The rows have the columns that are not bytes first."""

    def __init__(self, columns: Sequence[tuple[str, Type]]) -> None:
        plain = [(name, of_type) for name, of_type in columns if of_type is not Type.BYTES]
        large = [name for name, of_type in columns if of_type is Type.BYTES]
        self.names = [name for name, _ in plain] + large
        self._texts = [place for place, (_, of_type) in enumerate(plain) if of_type is Type.NAME]
        self._number = len(plain)
        self.select = _select([name for name, _ in plain], large)

    def unpack(self, packed: bytes, joined: bytes | None) -> list[list[Any]]:
        """Return the rows. One with a value that is to be read alone is longer than the others."""
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
                    row[place] = TooLong(-1 - size)
                    row.append(None)
        return rows

    def _decode_damaged(self, packed: bytes) -> list[list[Any]]:
        """Return the rows with escapes in place of bytes that are not UTF-8. The places of such texts follow the row's values."""
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
    items += [f"iif(length({value}) > {MOST_TOGETHER}, -1 - length({value}), length({value}))" for value in values]
    parts = [f"iif(length({value}) <= {MOST_TOGETHER}, {value}, x'')" for value in values]
    joined = f"CAST(group_concat({' || '.join(parts)}, '') AS BLOB)" if parts else "NULL"
    return f"CAST(json_group_array(json_array({', '.join(items)})) AS BLOB), {joined}"


def read_rows(
    connection: sqlite3.Connection, sql: Statements, text: str, packing: Packing, values: Sequence[object], size: int | None = None
) -> list[list[Any]]:
    """Run a statement in whose text @ stands for what is selected."""
    statement = text.replace("@", packing.select)
    placed = sql[statement] if size is None else sql.of_rows(statement, size)
    [(packed, joined)] = connection.execute(placed, tuple(values)).fetchall()
    return packing.unpack(packed, joined)


# --- records ------------------------------------------------------------------------------------------------------


class RecordPacking(Packing):
    """The columns of records of one kind. `with_content` adds their content, `entries` the value of an entry."""

    def __init__(self, kind: int, with_content: bool, entries: Type | None) -> None:
        columns = [("rev", Type.NUMBER), *[(field.name, field.type) for field in HEADERS[kind]], ("id", Type.BYTES)]
        columns += [(part, Type.BYTES) for part in (PARTS if with_content else PARTS[:2])]
        if entries is not None:
            columns.append(("value", entries))
        super().__init__(columns)
        self._kind, self._with_content, self._width = kind, with_content, len(self.names)
        self._entry_value = self.names.index("value") if entries is not None else None
        self._named = [(field.name, self.names.index(field.name)) for field in HEADERS[kind]]
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

    def _most(self, name: str) -> int:
        """Return the maximum size of a value that is read. Other programs may have stored any."""
        if name not in PARTS:
            return 0
        return SMALL if self._kind == Kind.JOB and name != "content" else LARGE

    def _whole(self, connection: sqlite3.Connection, sql: Statements, row: list[Any]) -> str | None:
        """Read the long values of a row, and return what is damaged."""
        damage = [f"{self.names[place]}\t{row[place]}" for places in row[self._width :] for place in places or ()]
        for place, value in enumerate(row[: self._width]):
            if type(value) is TooLong:
                name, row[place] = self.names[place], None
                if value > self._most(name):
                    damage.append(f"{name}\t{int(value)} bytes")
                else:
                    statement = f'SELECT {name} FROM "~{TABLES[self._kind]}" WHERE id = ?'
                    [(row[place],)] = connection.execute(sql[statement], (row[self._id],)).fetchall()
        return "\n".join(damage) or None


@cache
def record_packing(kind: int, with_content: bool, entries: Type | None = None) -> RecordPacking:
    return RecordPacking(kind, with_content, entries)


@cache
def position_packing(index: Index) -> Packing:
    """Return the columns of an index's positions, and the id."""
    types = {field.name: field.type for field in HEADERS[index.kind]} | {"id": Type.BYTES}
    columns = [(falling_column(name[1:]) if name[0] == "-" else name, types[name.removeprefix("-")]) for name in index.at]
    if index.entries is not None:
        columns.insert(0, ("value", index.entries))
    if "id" not in index.at:
        columns.append(("id", Type.BYTES))
    return Packing(columns)


def position_of(index: Index, record: Record) -> Position:
    """Return the position of a record in an index, without the value of an entry."""
    header = record.header
    return tuple([record.ref.id if field == "id" else -header[field[1:]] if field[0] == "-" else header[field] for field in index.at])


def rev_of(number: int) -> Rev:
    """Return a revision as the seam has it. Tables keep it as a number."""
    return (number & _ALL_BITS).to_bytes(8, "big")


_ALL_BITS: Final = (1 << 64) - 1
