"""Draws plots if matplotlib is installed (the extra `bench`)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.report import OURS, figure_text

SETTINGS: Final = {
    "svg.hashsalt": "taskflow",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


@dataclass(frozen=True)
class Curve:
    label: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """A panel of a plot: what its axis measures, with the unit, its curves, and whether the axis is logarithmic."""

    measures: str
    curves: Sequence[Curve]
    is_log: bool = False


def draw(path: Path, along: str, panels: Sequence[Panel], *, is_log: bool = False) -> bool:
    """Draw panels one below the other, as .svg and .png. Return False if matplotlib is missing."""
    if (drawing := _drawing()) is None:
        return False
    matplotlib, figures = drawing
    with matplotlib.rc_context(SETTINGS):
        figure = figures.Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
        below = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(below, panels, strict=True):
            _fill(axes, panel)
        if is_log:
            below[-1].set_xscale("log")
        below[-1].set_xlabel(along)
        _save(figure, path)
    return True


def _drawing() -> tuple[Any, Any] | None:
    """Return matplotlib and its figure module, or None. They're imported dynamically, so that type checks work without matplotlib."""
    try:
        return importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    except ImportError:
        print("no plot, because matplotlib is missing: pip install -e '.[bench]'", file=sys.stderr)
        return None


def _save(figure: Any, path: Path, *, png: bool = True) -> None:
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    if png:
        figure.savefig(path.with_suffix(".png"), dpi=120)


@dataclass(frozen=True)
class Bars:
    """A group of bars: what they measure, with the unit, and each bar's name, median, minimum and maximum."""

    measures: str
    bars: Sequence[tuple[str, float, float, float]]


def draw_bars(path: Path, groups: Sequence[Bars], *, png: bool = True) -> bool:
    """Draw groups of horizontal bars, longest first, as .svg and, if `png`, as .png. Return False if matplotlib is missing."""
    if (drawing := _drawing()) is None:
        return False
    matplotlib, figures = drawing
    with matplotlib.rc_context(SETTINGS):
        heights = [1.0 + 0.3 * len(group.bars) for group in groups]
        figure = figures.Figure(figsize=(9, sum(heights)), layout="constrained")
        below = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, group in zip(below, groups, strict=True):
            _fill_with_bars(axes, group)
        _save(figure, path, png=png)
    return True


def _fill_with_bars(axes: Any, group: Bars) -> None:
    ordered = sorted(group.bars, key=lambda bar: bar[1])
    names, middles = [bar[0] for bar in ordered], [bar[1] for bar in ordered]
    spans = [[middle - least for _, middle, least, _ in ordered], [most - middle for _, middle, _, most in ordered]]
    drawn = axes.barh(names, middles, xerr=spans, color=["#c2410c" if name == OURS else "#94a3b8" for name in names], ecolor="#334155")
    axes.bar_label(drawn, labels=[figure_text(middle) for middle in middles], padding=4, fontsize="small")
    axes.set_xlabel(group.measures)
    axes.margins(x=0.12)


def _fill(axes: Any, panel: Panel) -> None:
    for curve in panel.curves:
        axes.plot(curve.xs, curve.ys, label=curve.label, linewidth=1.2, marker="o" if len(curve.xs) < 12 else None, markersize=3)
    if panel.is_log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(panel.measures)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(5, len(panel.curves)), frameon=False, fontsize="small")
