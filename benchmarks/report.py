"""Rows of the tables, and how they are measured: in turn, so that the machine's mood touches both sides."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final


class ContenderFailed(Exception):
    """It did not do what was asked; says what, for the table."""


KEPT_TO: Final = 1e-4
"""Seconds to which instants are kept, and two clocks agree."""

OURS: Final = "taskflow"
BARE: Final = "bare loop"

FOR_PLOTS: Final = "~"
"""Figures whose names begin so are for plots alone."""

CURVE: Final = (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5)
"""Percentiles."""

Measured = Mapping[str, float]
"""Figures of one run, by their names with their units."""

Measure = Callable[[], Measured]


@dataclass(frozen=True)
class Contender:
    """Whom ours stands beside, and how it is measured once. `repeats` caps how often."""

    name: str
    measure: Measure
    repeats: int | None = None


@dataclass(frozen=True)
class Row:
    """A figure of all contenders.

    `part`      what was done, by a key that stays the same
    `what`      the same in words, with its sizes
    `figure`    its name with its unit
    `values`    of each contender one for each repeat; ours is first
    `failures`  of those that gave none, why
    """

    part: str
    what: str
    figure: str
    values: Mapping[str, Sequence[float]]
    failures: Mapping[str, str] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        return statistics.median(values) if (values := self.values.get(contender)) else None

    @property
    def ours(self) -> float:
        return statistics.median(self.values[OURS])

    @property
    def least(self) -> float:
        return min(self.values[OURS])

    @property
    def most(self) -> float:
        return max(self.values[OURS])

    @property
    def bare(self) -> float | None:
        return self.median(BARE)

    @property
    def ratio(self) -> float | None:
        return None if not self.bare else self.ours / self.bare

    @property
    def is_for_plots(self) -> bool:
        return self.figure.startswith(FOR_PLOTS)

    @property
    def peers(self) -> list[str]:
        return [name for name in self.values if name not in (OURS, BARE)]


def a_pair(what: str, repeats: int, ours: Callable[[], float], bare: Callable[[], float] | None = None, *, figure: str = "") -> Row:
    """Ours and the bare loop, one after the other, so many times."""
    [row] = in_turn(what, repeats, lambda: {figure: ours()}, None if bare is None else lambda: {figure: bare()})
    return row


def in_turn(
    what: str,
    repeats: int,
    ours: Measure,
    bare: Measure | None = None,
    peers: Sequence[Contender] = (),
    *,
    part: str | None = None,
    beside: str = BARE,
) -> list[Row]:
    """A row for each figure of any contender; one after the other, so many times.

    `beside` names what stands in the bare loop's place.

    Ours or the bare loop failing is an error; a peer that fails is told as such, and not tried again.
    """
    contenders = [Contender(OURS, ours), *([Contender(beside, bare)] if bare is not None else []), *peers]
    measured: dict[str, list[Measured]] = {contender.name: [] for contender in contenders}
    failures: dict[str, str] = {}
    for turn in range(repeats):
        for contender in contenders:
            if contender.name in failures or (contender.repeats is not None and turn >= contender.repeats):
                continue
            try:
                measured[contender.name].append(contender.measure())
            except ContenderFailed as error:
                failures[contender.name] = str(error)
    figures = list(dict.fromkeys(name for runs in measured.values() for run in runs for name in run))
    return [_figure_row(part or what, what, name, measured, failures) for name in figures]


def _figure_row(part: str, what: str, name: str, measured: Mapping[str, list[Measured]], failures: Mapping[str, str]) -> Row:
    values = {contender: [run[name] for run in runs if name in run] for contender, runs in measured.items() if contender not in failures}
    return Row(part, what, name, {contender: told for contender, told in values.items() if told}, failures)


def machine() -> str:
    return f"CPython {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs"


def percentile(sample: Iterable[float], share: float) -> float:
    ordered = sorted(sample)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def of_latencies(seconds: Iterable[float]) -> Measured:
    """Median and 99th percentile, and those between for a curve."""
    ordered = sorted(seconds)
    curve = {f"{FOR_PLOTS}{percent:g}": 1e3 * percentile(ordered, percent / 100) for percent in CURVE}
    return {"p50 ms": 1e3 * statistics.median(ordered), "p99 ms": 1e3 * percentile(ordered, 0.99), **curve}


def of_lags(seconds: Iterable[float], kept_to: float = KEPT_TO) -> Measured:
    """How late planned jobs began, and how many began before their time by more than instants are kept to."""
    lags = list(seconds)
    early = len([lag for lag in lags if lag < -kept_to])
    return {**of_latencies(lags), "max ms": 1e3 * max(lags), "early": early}


def figure_text(value: float, digits: int | None = None) -> str:
    """With as many digits as its size wants."""
    if digits is None:
        digits = 0 if abs(value) >= 100 or value == 0 else 1 if abs(value) >= 10 else 3 if abs(value) < 1 else 2
    return f"{value:,.{digits}f}"
