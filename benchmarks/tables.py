"""Markdown tables of rows: a table for each part and a line for each contender, with medians, minima and maxima."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.report import OURS, Row, figure_text


def tables(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if not row.is_for_plots]
    parts = [list(group) for _, group in groupby(rows, key=lambda row: row.part)]
    if all(len(part) == 1 for part in parts) and len({row.figure for row in rows}) == 1:
        return _one_figure(rows)
    if len(parts) > 1 and all(list(row.values) == [OURS] and not row.failures for row in rows):
        return "\n\n".join(_alone(group) for group in _with_the_same_figures(parts))
    return "\n\n".join(_a_part(part) for part in parts)


def _with_the_same_figures(parts: Sequence[list[Row]]) -> list[list[list[Row]]]:
    """Group adjacent parts that can share a table."""
    return [list(group) for _, group in groupby(parts, key=lambda part: [row.figure for row in part])]


def _alone(parts: Sequence[list[Row]]) -> str:
    """Return a table of our figures, with a line for each part."""
    lines = [[part[0].what, *(_cell(row, OURS) for row in part)] for part in parts]
    return _markdown(["", *(row.figure for row in parts[0])], lines)


def _a_part(rows: Sequence[Row]) -> str:
    """Return the table of a part. The last column is the ratio of our first figure to the contender's."""
    first = rows[0]
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    headings = [first.what, *(row.figure for row in rows)]
    lines = [[_name(name), *(_cell(row, name) for row in rows)] for name in names]
    if len(names) > 1:
        headings.append(f"taskflow's {first.figure} by its")
        lines = [[*line, _ratio(first, name)] for line, name in zip(lines, names, strict=True)]
    return "\n".join([_markdown(headings, lines), *_failures(first)])


def _one_figure(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    headings = [rows[0].figure or "figure", *names, *(f"taskflow by {name}" for name in names[1:])]
    lines = [[row.what, *(_cell(row, name) for name in names), *(_ratio(row, name) for name in names[1:])] for row in rows]
    return "\n".join([_markdown(headings, lines), *(line for row in rows for line in _failures(row))])


def _failures(row: Row) -> list[str]:
    return [f"\n{name} gave no figure: {why}." for name, why in row.failures.items()]


def _name(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _cell(row: Row, name: str) -> str:
    values = row.values.get(name)
    if not values:
        return ""
    median = figure_text(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({figure_text(min(values))}–{figure_text(max(values))})"  # noqa: RUF001 - a span


def _ratio(row: Row, name: str) -> str:
    ours, theirs = row.median(OURS), row.median(name)
    return "" if name == OURS or ours is None or not theirs else f"{ours / theirs:.2f}"


def _markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    sides = [":---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, sides, *lines))
