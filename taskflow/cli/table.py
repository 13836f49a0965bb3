"""Tables with one line for each row, and as many columns as fit the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from taskflow.cli.terminal import BOLD, cut, padded, painted, room, width, wrapped
from taskflow.model.printable import INDENT, MAX_CHARACTERS, one_line

ALWAYS_SHOWN: Final = 9
LEAST_NAME: Final = 12
"""The least width of a column of names."""


class Column(NamedTuple):
    """A column of a table.

    `keep`   its importance on a narrow terminal, where the less important ones are left out; `ALWAYS_SHOWN` for those that always stay
    `least`  the width to which it is narrowed if the columns that stay do not fit; None if it is not narrowed
    `most`   its maximum width on a terminal
    `color`  returns the colour of a row's cell, or None
    """

    title: str
    cell: Callable[[Any], object]
    keep: int = ALWAYS_SHOWN
    is_number: bool = False
    color: Callable[[Any], int | None] = lambda row: None
    least: int | None = None
    most: int = MAX_CHARACTERS


def table(columns: Sequence[Column], rows: Sequence[Any], *, below: Callable[[Any], str] = lambda row: "") -> Iterator[str]:
    """Yield a header, and a line for each row. If there is text `below` a row, further lines have it. In a pipe, nothing is left out."""
    cells = _cells(columns, rows)
    widths = _widths(cells)
    most = room()
    shown, gap = _fitting(columns, widths, most) if sys.stdout.isatty() else (columns, "  ")
    yield painted(cut(gap.join(_aligned(column.title, column, widths[column]) for column in shown).rstrip(), most), BOLD)
    for number, row in enumerate(rows):
        texts = [_aligned(cells[column][number], column, widths[column]) for column in shown]
        if not shown[-1].is_number:
            left = most - sum(map(width, texts[:-1])) - len(gap) * (len(shown) - 1)
            texts[-1] = cut(cells[shown[-1]][number], max(len("..."), left))
        yield gap.join(painted(text, column.color(row)) for text, column in zip(texts, shown, strict=True)).rstrip()
        if text := below(row):
            yield from (f"{INDENT}{line}" for line in wrapped(text, most - len(INDENT)))


def fits(columns: Sequence[Column], rows: Sequence[Any]) -> bool:
    """Return True if a table of these columns needs to leave nothing out."""
    return not sys.stdout.isatty() or _excess(columns, _widths(_cells(columns, rows)), "  ", room()) <= 0


def _cells(columns: Sequence[Column], rows: Sequence[Any]) -> dict[Column, list[str]]:
    return {column: [one_line(column.cell(row)) for row in rows] for column in columns}


def _widths(cells: Mapping[Column, Sequence[str]]) -> dict[Column, int]:
    return {column: min(max(map(width, (column.title, *texts))), column.most) for column, texts in cells.items()}


def _fitting(columns: Sequence[Column], widths: dict[Column, int], most: int) -> tuple[Sequence[Column], str]:
    """Return the columns that fit a terminal, and the gap between them. If the columns that stay do not fit, narrow one in `widths`."""
    if _excess(columns, widths, "  ", most) <= 0:
        return columns, "  "
    shown = [column for column in columns if column.keep == ALWAYS_SHOWN]
    for column in sorted((column for column in columns if column.keep < ALWAYS_SHOWN), key=lambda column: -column.keep):
        more = [each for each in columns if each in (*shown, column)]
        shown = more if _excess(more, widths, " ", most) <= 0 else shown
    excess = _excess(shown, widths, " ", most)
    for column in shown:
        if excess > 0 and column.least is not None:
            widths[column] = min(widths[column], max(column.least, widths[column] - excess))
    return shown, " "


def _excess(columns: Sequence[Column], widths: Mapping[Column, int], gap: str, most: int) -> int:
    return sum(widths[column] for column in columns) + len(gap) * (len(columns) - 1) - most


def _aligned(text: str, column: Column, most: int) -> str:
    return " " * (most - width(text)) + text if column.is_number else padded(text, most)
