"""Rows of the tables, and how they are measured: in turn, so that the machine's mood touches both sides."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Medians of the repeats, with minimum and maximum of ours; `bare` is None where there is nothing to compare with."""

    what: str
    ours: float
    least: float
    most: float
    bare: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if not self.bare else self.ours / self.bare


def a_pair(what: str, repeats: int, ours: Callable[[], float], bare: Callable[[], float] | None = None) -> Row:
    """Ours and the bare loop, one after the other, so many times."""
    pairs = [(ours(), bare() if bare is not None else None) for _ in range(repeats)]
    mine = [pair[0] for pair in pairs]
    theirs = [pair[1] for pair in pairs if pair[1] is not None]
    return Row(what, statistics.median(mine), min(mine), max(mine), statistics.median(theirs) if theirs else None)


Measured = Mapping[str, float]
"""Figures of one run, by their names with their units."""


def in_turn(what: str, repeats: int, ours: Callable[[], Measured], bare: Callable[[], Measured] | None = None) -> list[Row]:
    """A row for each figure of ours, beside that of the same name of the bare loop; one after the other, so many times."""
    pairs = [(ours(), bare() if bare is not None else {}) for _ in range(repeats)]
    return [_figure_row(f"{what}: {name}", name, pairs) for name in pairs[0][0]]


def _figure_row(what: str, name: str, pairs: list[tuple[Measured, Measured]]) -> Row:
    mine = [pair[0][name] for pair in pairs]
    theirs = [pair[1][name] for pair in pairs if name in pair[1]]
    return Row(what, statistics.median(mine), min(mine), max(mine), statistics.median(theirs) if theirs else None)


def machine() -> str:
    return f"CPython {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs"


def percentile(sample: Iterable[float], share: float) -> float:
    ordered = sorted(sample)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def print_table(title: str, unit: str, rows: Iterable[Row], digits: int | None = 0) -> str:
    """What it has printed. With `digits` None each figure has as many as its size wants."""
    rows = list(rows)
    width = max([44, *(len(row.what) for row in rows)])
    heading = f"{title:{width}} {f'ours, {unit}' if unit else 'ours':>16} {'min-max':>23} {'bare':>12} {'ratio':>6}"
    table = "\n".join([heading, *(_line(row, width, digits) for row in rows)])
    print(f"\n{table}", flush=True)
    return table


def _line(row: Row, width: int, digits: int | None) -> str:
    span = f"{_figure(row.least, digits)}-{_figure(row.most, digits)}"
    bare = "" if row.bare is None else _figure(row.bare, digits)
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return f"{row.what:{width}} {_figure(row.ours, digits):>16} {span:>23} {bare:>12} {ratio:>6}".rstrip()


def _figure(value: float, digits: int | None) -> str:
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"
