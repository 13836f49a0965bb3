"""The rows of the tables, and their measurement: contenders run in turn, so that changes in the machine's speed affect all of them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final


class ContenderFailed(Exception):
    """Raised if a contender could not do its task. The message goes into the table."""


KEPT_TO: Final = 1e-4
"""The precision in seconds of stored times, and of the agreement of two clocks."""

OURS: Final = "taskflow"
BARE: Final = "bare loop"

FOR_PLOTS: Final = "~"
"""The prefix of figures that only plots show."""

CURVE: Final = (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5)
"""The percentiles of a curve."""

Measured = Mapping[str, float]
"""The figures of one run, by name and unit."""

Measure = Callable[[], Measured]


@dataclass(frozen=True)
class Contender:
    """A program that is compared with taskflow, and a function that measures it once. `repeats` limits how often."""

    name: str
    measure: Measure
    repeats: int | None = None


@dataclass(frozen=True)
class Row:
    """One figure of all contenders.

    `part`      a stable key of what was done
    `what`      what was done in words, with sizes
    `figure`    the figure's name and unit
    `values`    for each contender a value per repeat; ours comes first
    `failures`  for contenders without a value, the reason
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
    """Measure ours and the bare loop in turn, `repeats` times."""
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
    """Measure the contenders in turn, `repeats` times. Return a row for each figure of any contender.

    `beside` names the contender that is passed as `bare`.

    It's an error if ours or `bare` fails. A peer that fails is reported as failed, and not tried again.
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
    """Return the median, the 99th percentile, and the percentiles for a curve, in milliseconds."""
    ordered = sorted(seconds)
    curve = {f"{FOR_PLOTS}{percent:g}": 1e3 * percentile(ordered, percent / 100) for percent in CURVE}
    return {"p50 ms": 1e3 * statistics.median(ordered), "p99 ms": 1e3 * percentile(ordered, 0.99), **curve}


def of_lags(seconds: Iterable[float], kept_to: float = KEPT_TO) -> Measured:
    """Return how late planned jobs began, and how many began early by more than `kept_to` seconds."""
    lags = list(seconds)
    early = len([lag for lag in lags if lag < -kept_to])
    return {**of_latencies(lags), "max ms": 1e3 * max(lags), "early": early}


def figure_text(value: float, digits: int | None = None) -> str:
    """Format a value, by default with as many digits as suit its size."""
    if digits is None:
        digits = 0 if abs(value) >= 100 or value == 0 else 1 if abs(value) >= 10 else 3 if abs(value) < 1 else 2
    return f"{value:,.{digits}f}"
