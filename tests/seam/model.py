"""The indexes that records should be in, computed from the declaration by SQLite and by sorting: independent of any store."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from taskflow.broker.engine.records import HEADERS, INDEXES, Index, Position
from taskflow.broker.engine.seam import Ref, Scan

Records = Mapping[Ref, tuple[Mapping[str, Any], Mapping[str, Sequence[str | bytes]]]]
"""The header and the entries of each record."""

BY_NAME: Final = {index.name: index for index in INDEXES}


@cache
def _database() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


def meets(index: Index, header: Mapping[str, Any]) -> bool:
    """Return True if the header meets the condition of the index."""
    names = [field.name for field in HEADERS[index.kind]]
    values = ", ".join(f":{name} AS {name}" for name in names) or "0"
    found = _database().execute(f"SELECT {index.when or '1'} FROM (SELECT {values})", {name: header[name] for name in names})
    return bool(found.fetchone()[0])


def position(index: Index, ref: Ref, header: Mapping[str, Any]) -> Position:
    fields = {**header, "id": ref.id}
    return tuple(-fields[field[1:]] if field.startswith("-") else fields[field] for field in index.at)


def entries(index: Index, records: Records) -> list[tuple[Position, Ref]]:
    """Return all entries of an index, in order."""
    found = list[tuple[Position, Ref]]()
    for ref, (header, values) in records.items():
        if ref.kind == index.kind and meets(index, header):
            place = position(index, ref, header)
            found += [((value, *place), ref) for value in values.get(index.name, ())] if index.entries else [(place, ref)]
    return sorted(found)


def answer(scan: Scan, records: Records) -> list[tuple[Position, Ref]]:
    """Return what a scan selects."""
    found = [entry for entry in entries(BY_NAME[scan.of], records) if entry[0][: len(scan.prefix)] == scan.prefix]
    first, last = (scan.until, scan.after) if scan.backwards else (scan.after, scan.until)
    ordered = reversed(found) if scan.backwards else found
    return [entry for entry in ordered if _is_between(first, entry[0], last) and entry[0] != scan.after][: scan.limit]


def _is_between(first: Position | None, place: Position, last: Position | None) -> bool:
    return (first is None or first <= place) and (last is None or place <= last)


def groups(index: Index, prefix: Position, records: Records) -> list[tuple[Position, int, Position | None, Position | None]]:
    places = [place for place, _ in entries(index, records)]
    sizes = Counter(place[: index.groups] for place in places)
    found = list[tuple[Position, int, Position | None, Position | None]]()
    for group, size in sorted(sizes.items()):
        if group[: len(prefix)] == prefix:
            within = [place for place in places if place[: index.groups] == group]
            first, last = (within[0], within[-1]) if index.listed else (None, None)
            found.append((group, size, first, last) if index.counted else (group, 0, first, None))
    return found
