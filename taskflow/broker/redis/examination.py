"""Compares the records of a namespace with their indexes and counts: see compare.lua."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from math import inf
from typing import Any, Final

from taskflow.broker.admin import Rebuilt
from taskflow.broker.engine.records import Kind
from taskflow.broker.redis.layout import BY_HAND, BY_NAME, PREFIXES, id_at
from taskflow.broker.redis.packing import pack
from taskflow.model.errors import BrokerUnavailable

_KINDS: Final = {prefix.encode(): kind for kind, prefix in enumerate(PREFIXES) if any(index.kind == kind for index in BY_NAME.values())}
_PORTION: Final = 100
"""The maximum number of records or entries that one script compares, which takes the server some milliseconds. A READY job is looked up in
a list, which takes up to 150 µs."""
_MAX_WALKS: Final = 3

Ask = Callable[..., Awaitable[Any]]


async def keys_of(ask: Ask, prefix: str) -> AsyncIterator[list[bytes]]:
    """Yield lists of the keys that begin with the prefix. A list may be empty, and a key may appear more than once."""
    cursor: Any = 0
    while True:
        cursor, keys = await ask("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1_000)
        yield keys
        if int(cursor) == 0:
            return


class Comparison:
    """Compares records with indexes and counts, and corrects the differences if `repairs` is True.

    Each script checks some records and adds the entries that they lack, or checks some entries and removes those that no record needs. So
    the comparison can be interrupted at any time, and other clients can use the store in the meantime.
    """

    def __init__(self, ask: Ask, call: Callable[[str, bytes], Awaitable[Any]], prefix: str, *, repairs: bool, within: float = inf) -> None:
        self._ask, self._call, self._prefix, self._repairs = ask, call, prefix, repairs
        self._ends_at = time.monotonic() + within
        self._found = Counter[str]()

    async def run(self) -> Rebuilt | None:
        """Return the differences. Return None if none were found, but `within` seconds were not enough or the counts kept changing. With
        `repairs`, raises BrokerUnavailable if the counts kept changing."""
        try:
            for _ in range(_MAX_WALKS):
                [before] = await self._compare("counts", [], -1)
                records, unreadable, others, counts = await self._compare_records()
                await self._compare_entries(others)
                [after] = await self._compare("counts", [item for pair in counts.items() for item in pair], before)
                if after == before or (self._found and not self._repairs):
                    return Rebuilt(corrected=dict(self._found), records=records, unreadable=unreadable)
        except TimeoutError:
            return Rebuilt(corrected=dict(self._found)) if self._found else None
        if not self._repairs:
            return None
        raise BrokerUnavailable("jobs keep being added or changed, so they cannot be counted: stop the programs that do this")

    async def _compare(self, of: str, *arguments: Any) -> Sequence[Any]:
        self._check_time()
        rest: list[Any]
        found, *rest = await self._call("compare", pack([self._repairs, of, *arguments]))
        for name, number in zip(found[::2], found[1::2], strict=True):
            self._found[name.decode()] += number
        return rest

    def _check_time(self) -> None:
        if time.monotonic() > self._ends_at:
            raise TimeoutError

    async def _compare_records(self) -> tuple[int, int, set[bytes], Counter[bytes]]:
        """Return the numbers of records and of unreadable ones, the names of `back:` and `leases:` keys, and the counts of jobs."""
        seen, others, counts, unreadable = set[bytes](), set[bytes](), Counter[bytes](), 0
        async for keys in keys_of(self._ask, self._prefix):
            self._check_time()
            names = dict.fromkeys(key[len(self._prefix) :] for key in keys)
            others.update(name for name in names if name.startswith((b"back:", b"leases:")))
            new = [name for name in names if name[:2] in _KINDS and name not in seen]
            seen.update(new)
            for first in range(0, len(new), _PORTION):
                refs = [value for name in new[first : first + _PORTION] for value in (_KINDS[name[:2]], name[2:])]
                damaged, counted = await self._compare("records", refs)
                unreadable += damaged
                for name, number in zip(counted[::2], counted[1::2], strict=True):
                    counts[name] += number
        return len(seen), unreadable, others, counts

    async def _compare_entries(self, others: set[bytes]) -> None:
        for index in BY_NAME.values():
            if index.name not in BY_HAND:
                await self._compare_members("index", index.name, index.kind, id_at(index.name))
        for name in sorted(others):
            of, _, place = name.partition(b":")
            if of == b"leases":
                await self._compare("leases", place)
            else:
                await self._compare_members("place", place, Kind.JOB, 17)

    async def _compare_members(self, of: str, name: Any, kind: int, at: int) -> None:
        rank: int | None = 0
        while rank is not None:
            [rank] = await self._compare(of, name, kind, at, rank, _PORTION)
