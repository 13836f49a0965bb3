"""Rows of the tables, and how they are measured: in turn, so that the machine's mood touches both sides."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
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
        return None if self.bare is None else self.ours / self.bare


def a_pair(what: str, repeats: int, ours: Callable[[], float], bare: Callable[[], float] | None = None) -> Row:
    """Ours and the bare loop, one after the other, so many times."""
    pairs = [(ours(), bare() if bare is not None else None) for _ in range(repeats)]
    mine = [pair[0] for pair in pairs]
    theirs = [pair[1] for pair in pairs if pair[1] is not None]
    return Row(what, statistics.median(mine), min(mine), max(mine), statistics.median(theirs) if theirs else None)


def print_table(title: str, unit: str, rows: Iterable[Row], digits: int = 0) -> None:
    print(f"\n{title:44} {f'ours, {unit}':>16} {'min-max':>23} {'bare':>12} {'ratio':>6}")
    for row in rows:
        span = f"{row.least:,.{digits}f}-{row.most:,.{digits}f}"
        bare = "" if row.bare is None else f"{row.bare:,.{digits}f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"{row.what:44} {row.ours:>16,.{digits}f} {span:>23} {bare:>12} {ratio:>6}")
