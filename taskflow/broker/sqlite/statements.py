"""Adapts SQL to a namespace, and runs statements for many rows at once.

sqlite3 releases the interpreter lock at every step of a statement: for every row of an `executemany`, and for every row fetched. With a
busy event loop, each release may cost a thread switch. Claiming and settling 100 jobs beside a busy loop took 440 µs per job row by row,
but 40 µs with all rows in one step; with an idle loop, both took 11 µs. So rows are passed in as VALUES lists, and come back as a single
row of aggregates: see queries.py.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Final

_MAX_ROWS: Final = 256
"""The maximum number of rows in one statement. The length of a list is always a power of two, so a few prepared statements serve lists of
any length."""

_REPEATED: Final = re.compile(r"(\((?:\?, )*\?\)) \.\.\.")
_INDEX: Final = re.compile(r'INDEXED BY "~')  # a schema may not be named there


class Statements:
    """Adapts statements to one namespace. In their texts, "~x" stands for the namespace's table x.

    Tables are qualified with their schema, `main`, because the caller's connection may have a temporary table with the same name.
    """

    def __init__(self, namespace: str) -> None:
        self.prefix = table_prefix(namespace)
        self._texts: dict[str, str] = {}
        self._of_rows: dict[tuple[str, int], str] = {}

    def __getitem__(self, text: str) -> str:
        known = self._texts.get(text)
        if known is None:
            known = _INDEX.sub(f'INDEXED BY "{self.prefix}', text).replace('"~', f'main."{self.prefix}')
            self._texts[text] = known
        return known

    def of_rows(self, text: str, number: int) -> str:
        """Return the statement with its list expanded to this number of rows: "(?, ?), (?, ?)" and so on."""
        known = self._of_rows.get((text, number))
        if known is None:
            known = _REPEATED.sub(lambda row: ", ".join([row[1]] * number), self[text])
            self._of_rows[text, number] = known
        return known

    def script(self, text: str) -> str:
        """Return the statements for a script that creates tables. Names need no schema there."""
        return text.replace('"~', f'"{self.prefix}')


def table_prefix(namespace: str) -> str:
    """Return the prefix of the namespace's table names.

    SQLite treats "A" and "a" as one name, and reserves names that begin with "sqlite". "^" marks a capital letter, "^^" a reserved name.
    """
    marked = re.sub("[A-Z]", lambda upper: "^" + upper[0].lower(), namespace)
    return ("^^" if marked.startswith("sqlite") else "") + marked + "_"


def pragma(name: str, value: int) -> str:
    """Return a PRAGMA with its value in the text, because a PRAGMA accepts no parameters."""
    return f"PRAGMA {name}={value:d}"


def row_of(columns: int) -> str:
    """Return a placeholder for a list of rows with this number of columns. `of_rows` expands it."""
    return f"({', '.join(['?'] * columns)}) ..."


def filled_up(rows: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Split the rows into chunks, and pad each to a power of two with rows of NULLs, which never match in a join. Yield the number of rows
    in each chunk, and its values."""
    for start in range(0, len(rows), _MAX_ROWS):
        chunk = rows[start : start + _MAX_ROWS]
        missing = (1 << (len(chunk) - 1).bit_length()) - len(chunk)
        padded = [*chunk, *repeat((None,) * len(chunk[0]), missing)] if missing else chunk
        yield len(padded), tuple(chain.from_iterable(padded))


def change_rows(
    connection: sqlite3.Connection, sql: Statements, text: str, rows: Sequence[tuple[object, ...]], shared: tuple[object, ...] = ()
) -> None:
    """Run a statement whose text contains a list of rows, once for each chunk of `rows`. The `shared` parameters follow the rows'."""
    for size, values in filled_up(rows):
        connection.execute(sql.of_rows(text, size), (*values, *shared))


def insert_rows(connection: sqlite3.Connection, sql: Statements, text: str, rows: Sequence[tuple[object, ...]]) -> int:
    """Insert the rows, and return how many were inserted."""
    start = inserted = 0
    while start < len(rows):
        size = min(_MAX_ROWS, 1 << (len(rows) - start).bit_length() - 1)
        values = tuple(chain.from_iterable(rows[start : start + size]))
        inserted += connection.execute(sql.of_rows(text, size), values).rowcount
        start += size
    return inserted
