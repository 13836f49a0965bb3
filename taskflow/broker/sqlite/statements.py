"""Loads the SQL statements of this folder's .sql files, adapts them to a namespace, and runs them for many rows at once.

sqlite3 releases the interpreter lock at every step of a statement: for every row of an `executemany`, and
for every row fetched. With a busy event loop, each release may cost a thread switch. Claiming and settling
100 jobs beside a busy loop took 440 µs per job row by row, but 40 µs with all rows in one step; with an idle
loop, both took 11 µs. So rows are passed in as VALUES lists, and come back as a single row of aggregates.
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
_TABLE: Final = re.compile(r'(?<!INDEXED BY )"~')  # an index may not be qualified there
_REPEATED: Final = re.compile(r"(\((?:\?, )*\?\)) \.\.\.")


class Statements:
    """Maps names to this folder's SQL statements, adapted to one namespace. In the files, "~x" stands for the namespace's table x.

    Statements name the table with its schema, main: on a connection of the caller, a temporary table may have the same name.
    """

    def __init__(self, namespace: str) -> None:
        self._prefix = table_prefix(namespace)
        self._texts = {name: self.placed(_TABLE.sub('main."~', text)) for name, text in _texts().items()}
        self._of_rows: dict[tuple[str, int], str] = {}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def placed(self, script: str) -> str:
        """Adapt SQL text to the namespace, and return it without comments."""
        return _COMMENT.sub("", script).replace('"~', f'"{self._prefix}')

    def of_rows(self, name: str, number: int) -> str:
        """Return the statement with its list expanded to this number of rows: "(?, ?), (?, ?)" and so on."""
        known = self._of_rows.get((name, number))
        if known is None:
            known = _REPEATED.sub(lambda row: ", ".join([row[1]] * number), self._texts[name])
            self._of_rows[name, number] = known
        return known


def table_prefix(namespace: str) -> str:
    """Return the prefix of the namespace's table names.

    SQLite treats "A" and "a" as the same name, and reserves names that begin with "sqlite". A "^" distinguishes them.
    """
    marked = re.sub("[A-Z]", lambda upper: "^" + upper[0].lower(), namespace)
    return ("^^" if marked.startswith("sqlite") else "") + marked + "_"


def pragma(name: str, value: int) -> str:
    """Return a PRAGMA with its value in the text, because a PRAGMA accepts no parameters."""
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
"""The maximum number of rows in one statement. The length of a list is always
a power of two, so a few prepared statements serve lists of any length."""


def execute_rows(
    connection: sqlite3.Connection, sql: Statements, name: str, rows: Sequence[tuple[object, ...]], shared: tuple[object, ...] = ()
) -> None:
    """Run a statement that joins a list of rows with a table. The `shared` parameters follow the list."""
    for chunk in _filled_up(rows):
        connection.execute(sql.of_rows(name, len(chunk)), (*chain.from_iterable(chunk), *shared))


def fetch_rows(
    connection: sqlite3.Connection, sql: Statements, name: str, rows: Sequence[tuple[object, ...]], shared: tuple[object, ...] = ()
) -> list[tuple[Any, ...]]:
    """Run a statement like `execute_rows`, and return all rows of its result."""
    found = list[tuple[Any, ...]]()
    for chunk in _filled_up(rows):
        found += connection.execute(sql.of_rows(name, len(chunk)), (*chain.from_iterable(chunk), *shared))
    return found


def inserts(connection: sqlite3.Connection, sql: Statements, name: str, rows: Sequence[tuple[object, ...]]) -> Iterator[sqlite3.Cursor]:
    """Insert the rows, and yield a cursor after each of the statements that this takes."""
    for chunk in _cut(rows):
        yield connection.execute(sql.of_rows(name, len(chunk)), tuple(chain.from_iterable(chunk)))


def _filled_up(rows: Sequence[tuple[object, ...]]) -> Iterator[Sequence[tuple[object, ...]]]:
    """Split the rows into chunks, and pad each to a power of two with rows of NULLs, which never match in a join."""
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
