"""Many rows by few steps.

sqlite3 lets go of the interpreter's lock at every step of a statement, which is every row of an `executemany` and every row fetched.
Beside a busy event loop each time may cost a switch of threads: a hundred jobs claimed and settled row by row took 440 us a job, by
single steps 40, where both took 11 on an idle loop. So rows go in as VALUES lists and come out as one row of aggregates.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Final

from taskflow.broker.sqlite.statements import Statements

_MOST_ROWS: Final = 256
"""In one statement. Of lengths there are but the powers of two, so that a handful of prepared statements serves every number."""


def execute_rows(
    connection: sqlite3.Connection, sql: Statements, name: str, rows: Sequence[tuple[object, ...]], shared: tuple[object, ...] = ()
) -> int:
    """Run a statement that joins a list with a table, with the parameters that all rows share after them. How many rows it changed."""
    before = connection.total_changes  # a cursor's rowcount does not count what begins by WITH
    for chunk in _filled_up(rows):
        connection.execute(sql.of_rows(name, len(chunk)), (*chain.from_iterable(chunk), *shared))
    return connection.total_changes - before


def fetch_rows(
    connection: sqlite3.Connection, sql: Statements, name: str, rows: Sequence[tuple[object, ...]], shared: tuple[object, ...] = ()
) -> list[tuple[Any, ...]]:
    """As `execute_rows`; all that the statement replies."""
    found = list[tuple[Any, ...]]()
    for chunk in _filled_up(rows):
        found += connection.execute(sql.of_rows(name, len(chunk)), (*chain.from_iterable(chunk), *shared))
    return found


def insert_rows(connection: sqlite3.Connection, sql: Statements, name: str, rows: Sequence[tuple[object, ...]]) -> int:
    """How many it added."""
    added = 0
    for chunk in _cut(rows):
        added += connection.execute(sql.of_rows(name, len(chunk)), tuple(chain.from_iterable(chunk))).rowcount
    return added


def _filled_up(rows: Sequence[tuple[object, ...]]) -> Iterator[Sequence[tuple[object, ...]]]:
    """With rows of NULLs, which equal nothing, so that they join nothing."""
    for start in range(0, len(rows), _MOST_ROWS):
        chunk = rows[start : start + _MOST_ROWS]
        missing = (1 << (len(chunk) - 1).bit_length()) - len(chunk)
        yield [*chunk, *repeat((None,) * len(chunk[0]), missing)] if missing else chunk


def _cut(rows: Sequence[tuple[object, ...]]) -> Iterator[Sequence[tuple[object, ...]]]:
    start = 0
    while start < len(rows):
        size = min(_MOST_ROWS, 1 << (len(rows) - start).bit_length() - 1)
        yield rows[start : start + size]
        start += size


def slices(joined: bytes | None, size: int) -> list[bytes]:
    """Values of one size out of their concatenation."""
    joined = joined or b""
    return [joined[start : start + size] for start in range(0, len(joined), size)]
