"""The targets as data: where each figure stands among what is kept, and what it must be beside the bare loop and the peers."""

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
    """`peer` is the best one and its figure."""

    value: float
    is_held: bool
    bare: float | None = None
    peer: tuple[str, float] | None = None


@dataclass(frozen=True)
class Check:
    """One figure of a target. Where several bounds are given all must hold.

    `least`, `most`    of the figure itself
    `against`          what stands in the bare loop's place
    `by_bare`          least (of a rate) or most (of a time) of its ratio to the bare loop's
    `or_by_bare`       such a ratio that is enough whatever the figure is
    `by_peer`          least of its ratio to the best peer's; of `peer`, or of those that `among` (of AMONG) lets take part
    `small_is_good`    it is a time or a cost
    `value`            of VALUES, when it is more than the figure
    `or_value`         another of them, which is enough when it reaches `or_least`
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
        """None when it was not measured."""
        found = kept.get(self.workload)
        row = found.row(self.part, self.figure) if found is not None else None
        if found is None or row is None:
            return None
        value, bare, best = VALUES[self.value](found, row), row.median(self.against), self._best(found, row)
        is_enough = self.or_value is not None and VALUES[self.or_value](found, row) >= self.or_least
        return Verdict(value, is_enough or self._is_held(value, bare, best), bare, best)

    def _best(self, found: Kept, row: Row) -> tuple[str, float] | None:
        """Who begins planned jobs early is not late, and has no part in how late they begin."""
        early = found.row(self.part, "early") if self.figure != "early" else None
        too_early = {name for name in early.peers if early.median(name)} if early is not None else set[str]()
        others = [name for name in row.peers if name != self.against and name not in too_early]
        taking_part = [name for name in others if AMONG[self.among](name) and self.peer in (None, name)]
        figures = [(name, row.median(name) or 0.0) for name in taking_part]
        if not figures:
            return None
        return (min if self.small_is_good else max)(figures, key=lambda figure: figure[1])

    def _is_held(self, value: float, bare: float | None, best: tuple[str, float] | None) -> bool:
        """A bound that has nothing to be compared with does not hold."""
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
    """Two workers' rate by one's."""
    one = kept.row("1", row.figure)
    return row.ours / one.ours if one is not None else 0.0


def _of_the_bound(kept: Kept, row: Row) -> float:
    """Two workers' rate by one's, beside what two cores allow: 2w / (w + s), or the server's own core when that is less."""
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
"""In the order of the targets. T18 has a study of its own, `postgres-busy`, which judges itself."""
