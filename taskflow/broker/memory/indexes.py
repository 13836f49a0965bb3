"""Sorted indexes, and the places of a record in them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, Final

from taskflow.broker.engine.records import HEADERS, INDEXES, Index, Position
from taskflow.broker.engine.seam import Group, Ref, Scan

MIN_REMOVED: Final = 1_000
"""An index shortens its list when it has removed more than this many entries, and more than half, from the beginning."""


Places = list[tuple[int, Position]]
"""The places of a record: the numbers of indexes, each with a position."""


class SortedIndex:
    """The entries of one index in the order of their positions, and the sizes of its groups.

    The entries before `_head` count as removed. Claims keep removing the first entry, and moving all others up each time would dominate
    the cost.
    """

    def __init__(self, index: Index) -> None:
        self._groups, self._is_listed, self._is_counted = index.groups, index.listed, index.counted
        self._entries = list[tuple[Position, Ref]]()
        self._head = 0
        self.sizes: dict[Position, int] = {}

    def add(self, position: Position, ref: Ref) -> None:
        if self._groups:
            prefix = position[: self._groups]
            self.sizes[prefix] = self.sizes.get(prefix, 0) + 1
        if self._is_listed:
            entry, entries = (position, ref), self._entries
            if self._head == len(entries) or entries[-1] < entry:
                entries.append(entry)
            else:
                insort(entries, entry, self._head)

    def remove(self, position: Position, ref: Ref) -> None:
        if self._groups:
            prefix = position[: self._groups]
            self.sizes[prefix] -= 1
            if not self.sizes[prefix]:
                del self.sizes[prefix]
        if not self._is_listed:
            return
        at = bisect_left(self._entries, (position, ref), self._head)
        if at > self._head:
            del self._entries[at]
            return
        self._head += 1
        if self._head > MIN_REMOVED and self._head > len(self._entries) // 2:
            del self._entries[: self._head]
            self._head = 0

    def scan(self, scan: Scan) -> list[tuple[Position, Ref]]:
        first, last = self._range(scan.prefix)
        if scan.after is not None and scan.backwards:
            last = min(last, bisect_left(self._entries, scan.after, first, last, key=_position))
        elif scan.after is not None:
            first = max(first, bisect_right(self._entries, scan.after, first, last, key=_position))
        if scan.until is not None and scan.backwards:
            first = max(first, bisect_left(self._entries, scan.until, first, last, key=_position))
        elif scan.until is not None:
            last = min(last, bisect_right(self._entries, scan.until, first, last, key=_position))
        if scan.backwards:
            return self._entries[max(first, last - scan.limit) : last][::-1]
        return self._entries[first : min(last, first + scan.limit)]

    def groups(self, prefix: Position) -> list[Group]:
        found = sorted(group for group, size in self.sizes.items() if size and group[: len(prefix)] == prefix)
        return [Group(group, self.sizes[group] if self._is_counted else 0, *self._ends(group)) for group in found]

    def prefixes(self) -> Iterable[Position]:
        return self.sizes.keys()

    def size(self, prefix: Position) -> int:
        return self.sizes.get(prefix, 0)

    def _ends(self, prefix: Position) -> tuple[Position | None, Position | None]:
        if not self._is_listed:
            return None, None
        first, last = self._range(prefix)
        return self._entries[first][0], self._entries[last - 1][0] if self._is_counted else None

    def _range(self, prefix: Position) -> tuple[int, int]:
        """Return the start and the end of the entries with this prefix."""
        if not prefix:
            return self._head, len(self._entries)

        def start_of(entry: tuple[Position, Ref]) -> Position:
            return entry[0][: len(prefix)]

        first = bisect_left(self._entries, prefix, self._head, key=start_of)
        return first, bisect_right(self._entries, prefix, first, key=start_of)


_position: Final[Callable[[tuple[Position, Ref]], Position]] = itemgetter(0)


def placing(kind: int) -> Callable[[Mapping[str, Any], bytes, Mapping[str, Any]], Places]:
    """Return a function that computes a record's places in all indexes from its header, id and entries.

    It is compiled from the declaration. A loop over the indexes would take several times as long for each change of a job.
    """
    names = [field.name for field in HEADERS[kind]]
    lines = ["def places(header, id, entries):", "    found = []", *(f"    {name} = header['{name}']" for name in names)]
    for number, index in enumerate(INDEXES):
        if index.kind != kind:
            continue
        position = "".join(f"{field}, " for field in index.at)
        if index.entries:
            line = f"found += [({number}, (value, {position})) for value in entries.get('{index.name}', ())]"
        else:
            line = f"found.append(({number}, ({position})))"
        lines.append(f"    if {_in_python(index.when) or 'True'}: {line}")
    scope: dict[str, Any] = {}
    exec("\n".join([*lines, "    return found"]), scope)
    places: Callable[[Mapping[str, Any], bytes, Mapping[str, Any]], Places] = scope["places"]
    return places


def _in_python(condition: str) -> str:
    """Translate the SQL condition of an index's declaration into Python."""
    for sql, python in (
        ("IS NOT NULL", "is not None"),
        ("IS NULL", "is None"),
        ("<>", "!="),
        (" = ", " == "),
        (" AND ", " and "),
        (" OR ", " or "),
    ):
        condition = condition.replace(sql, python)
    return condition
