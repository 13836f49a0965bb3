"""The plots of a workload: bars of rates, curves of percentiles, and curves of a job's cost along a size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from benchmarks.kept import Kept
from benchmarks.plots import Bars, Curve, Panel, draw as draw_curves, draw_bars
from benchmarks.report import BARE, FOR_PLOTS, Row

ALONG: Final = {
    "workers": "worker processes",
    "concurrency": "jobs at a time",
    "payload": "bytes of payload",
    "backlogs": "jobs queued",
}
"""The meaning of the numbers of a workload's parts, by the last word of its name."""

A_RATE: Final = "/s"


def draw(kept: Kept, folder: Path) -> list[Path]:
    """Draw a workload's plots. Return the .svg files; each has a .png beside it."""
    stem = folder / kept.workload
    if along := ALONG.get(kept.workload.rpartition("-")[2]):
        return _drawn(stem, draw_curves(stem, along, _along([row for row in kept.rows if row.part.isdigit()]), is_log=True))
    plots = []
    if groups := list(_bars(kept.rows)):
        plots += _drawn(stem, draw_bars(stem, groups))
    if panels := list(_percentiles(kept.rows)):
        curves = stem.with_name(f"{stem.name}-percentiles")
        plots += _drawn(curves, draw_curves(curves, "percentile", panels))
    return plots


def drains(all_kept: Mapping[str, Kept]) -> Iterator[tuple[str, Row]]:
    """Yield the name of each store on a server, with its row of jobs per second."""
    for store in ("Redis", "PostgreSQL"):
        kept = all_kept.get("redis-drain" if store == "Redis" else "postgres-drain")
        row = kept and kept.row("drain, 100 at a time", "jobs/s")
        if row:
            yield store, row


def draw_throughput(all_kept: Mapping[str, Kept], path: Path) -> bool:
    """Draw the chart of the README: taskflow beside other queues, without the bare loop."""
    rows = [(store, [(name, row.median(name) or 0.0) for name in row.values if name != BARE]) for store, row in drains(all_kept)]
    return draw_bars(path, [Bars(f"{store}: jobs/s", [(n, rate, rate, rate) for n, rate in bars]) for store, bars in rows], png=False)


def _drawn(stem: Path, is_there: bool) -> list[Path]:
    return [stem.with_name(f"{stem.name}.svg")] if is_there else []


def _along(rows: Sequence[Row]) -> list[Panel]:
    """Return a panel for each figure, with a curve for each contender."""
    figures = dict.fromkeys(row.figure for row in rows if not row.is_for_plots)
    return [Panel(figure, _curves([row for row in rows if row.figure == figure])) for figure in figures]


def _curves(rows: Sequence[Row]) -> list[Curve]:
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [_curve(name, [(float(row.part), value) for row in rows if (value := row.median(name)) is not None]) for name in names]


def _curve(label: str, points: Sequence[tuple[float, float]]) -> Curve:
    return Curve(label, [x for x, _ in points], [y for _, y in points])


def _bars(rows: Sequence[Row]) -> Iterable[Bars]:
    for row in rows:
        if row.figure.endswith(A_RATE) and len(row.values) > 1:
            yield Bars(
                f"{row.what}: {row.figure}", [(name, row.median(name) or 0.0, min(told), max(told)) for name, told in row.values.items()]
            )


def _percentiles(rows: Sequence[Row]) -> Iterable[Panel]:
    for what, group in groupby((row for row in rows if row.is_for_plots), key=lambda row: row.what):
        part = list(group)
        names = list(part[0].values)
        points = {name: [(float(row.figure.removeprefix(FOR_PLOTS)), row.median(name) or 0.0) for row in part] for name in names}
        yield Panel(f"{what}, ms", [_curve(name, points[name]) for name in names], is_log=True)
