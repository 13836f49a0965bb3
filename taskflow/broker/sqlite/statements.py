"""The SQL of this folder, by name, for one namespace, and many rows in few steps. No other module puts text into SQL.

sqlite3 lets go of the interpreter's lock at every step of a statement, which is every row of an `executemany` and every row fetched.
Beside a busy event loop each time may cost a switch of threads: a hundred jobs claimed and settled row by row took 440 us a job, by
single steps 40, where both took 11 on an idle loop. So rows go in as VALUES lists and come out as one row of aggregates.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

from taskflow.broker.sqlite.columns import lists

_FOLDER: Final = Path(__file__).parent
_NAME_LINE: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^\s*--.*$|\s+-- .*$", re.MULTILINE)
_INCLUDED: Final = re.compile(r"@(\w+)")
_REPEATED: Final = re.compile(r"(\((?:\?, )*\?\)) \.\.\.")


class Statements:
    """Every statement of the folder by its name; "~x" in it has become the namespace's table x."""

    def __init__(self, namespace: str) -> None:
        self._prefix = table_prefix(namespace)
        self._texts = {name: self._of_namespace(text) for name, text in _texts().items()}
        self._of_rows: dict[tuple[str, int], str] = {}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def placed(self, script: str) -> str:
        """A script that is not of this folder, for the namespace, without its comments."""
        return self._of_namespace(_COMMENT.sub("", script))

    def _of_namespace(self, text: str) -> str:
        return text.replace('"~', f'"{self._prefix}')

    def of_rows(self, name: str, number: int) -> str:
        """A statement that ends a list with "(?, ?) ...", for so many of them."""
        known = self._of_rows.get((name, number))
        if known is None:
            known = _REPEATED.sub(lambda row: ", ".join([row[1]] * number), self._texts[name])
            self._of_rows[name, number] = known
        return known


def table_prefix(namespace: str) -> str:
    """What the names of a namespace's tables begin with.

    SQLite takes "A" and "a" for the same name, and keeps those that begin with "sqlite" to itself: a "^" tells them apart.
    """
    marked = re.sub("[A-Z]", lambda upper: "^" + upper[0].lower(), namespace)
    return ("^^" if marked.startswith("sqlite") else "") + marked + "_"


def pragma(name: str, value: int) -> str:
    """A PRAGMA takes no parameters."""
    return f"PRAGMA {name}={value:d}"


@cache
def _texts() -> dict[str, str]:
    found: dict[str, str] = {}
    made = lists()
    for file in sorted(_FOLDER.glob("*.sql")):
        _, *parts = _NAME_LINE.split(file.read_text())
        found |= {name: _COMMENT.sub("", text).strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    found = {name: _INCLUDED.sub(lambda part: made.get(part[1], part[0]), text) for name, text in found.items()}
    return {name: _INCLUDED.sub(lambda part: found[part[1]], text) for name, text in found.items()}


# --- many rows ---------------------------------------------------------------------------------------------------

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
