"""A table of one line a row, with as many columns as fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from taskflow.cli.terminal import BOLD, cut, padded, painted, room, width
from taskflow.model.printable import one_line

STAYS: Final = 9
LEAST_NAME: Final = 12


class Column(NamedTuple):
    """A column of a table. The first one is a name, which is cut if all else fails.

    `keep`   its importance on a narrow terminal, where the less important ones are left out; `STAYS` for those that always stay
    `color`  returns the colour of a row's cell, or None
    """

    title: str
    cell: Callable[[Any], object]
    keep: int = STAYS
    is_number: bool = False
    color: Callable[[Any], int | None] = lambda row: None


def table(columns: Sequence[Column], rows: Sequence[Any]) -> Iterator[str]:
    """Yield a header, and a line for each row. In a pipe, nothing is left out."""
    cells = {column: [one_line(column.cell(row)) for row in rows] for column in columns}
    widths = {column: max(map(width, (column.title, *cells[column]))) for column in columns}
    shown, most, gap = list(columns), room(), "  "

    def excess() -> int:
        return sum(widths[column] for column in shown) + len(gap) * (len(shown) - 1) - most

    if excess() > 0:
        gap, shown = " ", [column for column in columns if column.keep == STAYS]
        for column in sorted((column for column in columns if column.keep < STAYS), key=lambda column: -column.keep):
            if excess() + len(gap) + widths[column] <= 0:
                shown = [each for each in columns if each in (*shown, column)]
    if excess() > 0:
        widths[shown[0]] = max(LEAST_NAME, widths[shown[0]] - excess())
    yield painted(cut(gap.join(_aligned(column.title, column, widths[column]) for column in shown).rstrip(), most), BOLD)
    for number, row in enumerate(rows):
        texts = [_aligned(cells[column][number], column, widths[column]) for column in shown]
        if shown[-1].is_number is False:
            left = most - sum(map(width, texts[:-1])) - len(gap) * (len(shown) - 1)
            texts[-1] = cut(cells[shown[-1]][number], max(len("..."), left))
        yield gap.join(painted(text, column.color(row)) for text, column in zip(texts, shown, strict=True)).rstrip()


def _aligned(text: str, column: Column, most: int) -> str:
    return " " * (most - width(text)) + text if column.is_number else padded(text, most)
