"""Plots, where matplotlib is installed: the extra `bench`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SETTINGS: Final = {"svg.hashsalt": "taskflow", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}


@dataclass(frozen=True)
class Curve:
    label: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """What its axis measures from zero, with the unit, and what is drawn in it."""

    measures: str
    curves: Sequence[Curve]


def draw(path: Path, along: str, panels: Sequence[Panel]) -> bool:
    """Panels one below the other, as .svg and .png; whether there was anything to draw them with."""
    try:
        # Its types are not asked for: who checks ours need not have it.
        matplotlib, figures = importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    except ImportError:
        print("no plot: it takes matplotlib (pip install -e '.[bench]')", file=sys.stderr)
        return False
    with matplotlib.rc_context(SETTINGS):
        figure = figures.Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
        below = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(below, panels, strict=True):
            _fill(axes, panel)
        below[-1].set_xlabel(along)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=120)
    return True


def _fill(axes: Any, panel: Panel) -> None:
    for curve in panel.curves:
        axes.plot(curve.xs, curve.ys, label=curve.label, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(panel.measures)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(panel.curves), frameon=False, fontsize="small")
