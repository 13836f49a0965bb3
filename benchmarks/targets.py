"""The targets as data: where each figure is found among the results, and its bounds, also relative to the bare loop and the peers."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.kept import Kept
from benchmarks.peers.catalogue import PEERS
from benchmarks.report import BARE, Row

CPU: Final = "worker CPU µs/job"

AllKept = Mapping[str, Kept]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check. `peer` is the best peer and its figure."""

    value: float
    is_held: bool
    bare: float | None = None
    peer: tuple[str, float] | None = None


@dataclass(frozen=True)
class Check:
    """One figure of a target. If several bounds are given, all must hold.

    `least`, `most`    bounds of the figure itself
    `against`          the contender in the bare loop's place
    `by_bare`          the minimum (of a rate) or maximum (of a time) of its ratio to the bare loop's
    `or_by_bare`       such a ratio that is enough whatever the figure is
    `by_peer`          a bound of its ratio to the best peer's: `peer`, or the best of those that `among` (a key of AMONG) admits
    `small_is_good`    True if the figure is a time or a cost
    `value`            a key of VALUES, if the value is computed from the figure
    `or_value`         another key of VALUES, whose value is enough if it reaches `or_least`
    """

    target: str
    what: str
    workload: str
    part: str
    figure: str
    wanted: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    against: str = BARE
    by_bare: float | None = None
    or_by_bare: float | None = None
    by_peer: float | None = None
    peer: str | None = None
    among: str | None = None
    small_is_good: bool = False
    value: str | None = None
    or_value: str | None = None
    or_least: float = 0.0

    def judge(self, kept: AllKept) -> Verdict | None:
        """Return the verdict, or None if the figure was not measured."""
        found = kept.get(self.workload)
        row = found.row(self.part, self.figure) if found is not None else None
        if found is None or row is None:
            return None
        value, bare, best = VALUES[self.value](found, row), row.median(self.against), self._best(found, row)
        is_enough = self.or_value is not None and VALUES[self.or_value](found, row) >= self.or_least
        return Verdict(value, is_enough or self._is_held(value, bare, best), bare, best)

    def _best(self, found: Kept, row: Row) -> tuple[str, float] | None:
        """Return the best peer and its figure. Peers that begin planned jobs early are left out, because they are never late."""
        early = found.row(self.part, "early") if self.figure != "early" else None
        too_early = {name for name in early.peers if early.median(name)} if early is not None else set[str]()
        others = [name for name in row.peers if name != self.against and name not in too_early]
        taking_part = [name for name in others if AMONG[self.among](name) and self.peer in (None, name)]
        figures = [(name, row.median(name) or 0.0) for name in taking_part]
        if not figures:
            return None
        return (min if self.small_is_good else max)(figures, key=lambda figure: figure[1])

    def _is_held(self, value: float, bare: float | None, best: tuple[str, float] | None) -> bool:
        """Return True if all bounds hold. A ratio without a figure to compare with does not hold."""
        if self.or_by_bare is not None and bare and self._reaches(value / bare, self.or_by_bare):
            return True
        return all(
            (
                self.least is None or value >= self.least,
                self.most is None or value <= self.most,
                self.by_bare is None or bool(bare and self._reaches(value / bare, self.by_bare)),
                self.by_peer is None or bool(best and best[1] and self._reaches(value / best[1], self.by_peer)),
            )
        )

    def _reaches(self, ratio: float, bound: float) -> bool:
        return ratio <= bound if self.small_is_good else ratio >= bound


IN_NODE: Final = frozenset(peer.name for peer in PEERS if peer.in_node)
LOSES_JOBS: Final = frozenset(peer.name for peer in PEERS if peer.killed.startswith("lost"))


def _is_safe_python(name: str) -> bool:
    return name not in IN_NODE and name not in LOSES_JOBS


def _of_one(kept: Kept, row: Row) -> float:
    """Return the ratio of this rate to one worker's rate."""
    one = kept.row("1", row.figure)
    return row.ours / one.ours if one is not None else 0.0


def _of_the_bound(kept: Kept, row: Row) -> float:
    """Return that ratio, relative to what two cores allow: 2w / (w + s) for the CPU times w of a worker and s of the server, at least 1."""
    worker, server = kept.row("1", CPU), kept.row("1", "server CPU µs/job")
    if worker is None or server is None:
        return 0.0
    return _of_one(kept, row) / max(1.0, 2 * worker.ours / (worker.ours + server.ours))


AMONG: Final[Mapping[str | None, Callable[[str], bool]]] = {None: lambda name: True, "safe in Python": _is_safe_python}

VALUES: Final[Mapping[str | None, Callable[[Kept, Row], float]]] = {
    None: lambda kept, row: row.ours,
    "of one worker": _of_one,
    "of the bound": _of_the_bound,
}

CHECKS: Final[Sequence[Check]] = tuple(
    Check(**told) for told in tomllib.loads(Path(__file__).with_name("targets.toml").read_text())["checks"]
)
"""The checks, in the order of the targets. T18 is checked by a separate study, `postgres-busy`."""
