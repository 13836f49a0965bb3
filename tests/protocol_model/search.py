"""Breadth-first search over all that may happen: the first violation found is at the end of a shortest path."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from tests.protocol_model import invariants
from tests.protocol_model.invariants import Invariant
from tests.protocol_model.rules import Rules
from tests.protocol_model.tidy import tidy
from tests.protocol_model.world import Action, Bounds, World, first_world, successors


@dataclass(frozen=True)
class Counterexample:
    """A shortest path to a broken invariant."""

    invariant: Invariant
    path: tuple[Action, ...]


@dataclass(frozen=True)
class SearchResult:
    """What a search came to: how many states and steps it has looked at, how deep they lie, and what it ran into, if anything."""

    states: int
    steps: int
    depth: int
    counterexample: Counterexample | None


def search(rules: Rules, bounds: Bounds) -> SearchResult:
    """Every state within the bounds, or those up to the first violation."""
    start = first_world(bounds)
    seen: dict[World, int] = {start: 0}
    worlds = [start]
    parents = array("l", [-1])
    depths = array("l", [0])
    steps = 0
    for index, before in enumerate(worlds):
        for action, after in successors(rules, bounds, before):
            steps += 1
            tidied = before if after is before else tidy(bounds, after)
            is_new = tidied not in seen
            broken = invariants.violated(rules, before, action, after, is_new=is_new)
            if broken is not None:
                path = (*_path(rules, bounds, worlds, parents, index), action)
                return SearchResult(len(worlds), steps, depths[index] + 1, Counterexample(broken, path))
            if is_new:
                seen[tidied] = len(worlds)
                worlds.append(tidied)
                parents.append(index)
                depths.append(depths[index] + 1)
    return SearchResult(len(worlds), steps, depths[-1], None)


def _path(rules: Rules, bounds: Bounds, worlds: list[World], parents: array[int], index: int) -> list[Action]:
    """The actions that lead there, found again: keeping one for every state would cost more memory than the states."""
    path: list[Action] = []
    while parents[index] >= 0:
        before, goal = worlds[parents[index]], worlds[index]
        path.append(next(action for action, after in successors(rules, bounds, before) if tidy(bounds, after) == goal))
        index = parents[index]
    return path[::-1]
