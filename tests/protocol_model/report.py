"""What `python -m tests.protocol_model` searches and prints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Final

from tests.protocol_model.rules import BROKEN, CORRECT, IN_STEPS, Rules
from tests.protocol_model.search import Counterexample, SearchResult, search
from tests.protocol_model.world import Bounds

LEAN: Final = Bounds(late_beats=0, losses=0, lapses_apart=False, empty_answers=False)
"""Without what `Bounds` calls the same or more permissive, to afford more of the rest."""

REGULAR: Final = {
    "every detail, one life each": Bounds(epochs=2, restarts=0, losses=0, late_beats=0),
    "late beats": Bounds(epochs=1, restarts=0, losses=0, late_beats=1),
    "a restart": replace(LEAN, epochs=2, restarts=1, requests=1),
    "a lost tail": replace(LEAN, epochs=2, restarts=0, losses=1, requests=1),
    "two jobs": replace(LEAN, jobs=2, epochs=1, restarts=0, limit=2),
}
FULL: Final = {
    "every detail, late beats": Bounds(epochs=2, restarts=0, losses=0, late_beats=1, requests=2),
    "three leases, two restarts": replace(LEAN, epochs=3, restarts=2, requests=1),
    "a lost tail, two requests": replace(LEAN, epochs=2, restarts=0, losses=1),
    "a lost tail, a restart": replace(LEAN, epochs=2, restarts=1, losses=1, requests=1),
    "two jobs, one by one": replace(LEAN, jobs=2, epochs=2, restarts=0),
}
DEEP: Final = {"three leases, two restarts, a lost tail": replace(LEAN, epochs=3, restarts=2, losses=1, requests=1, tail=2)}

_HUNT: Final = Bounds(restarts=1, losses=0)
_LOSSES_MATTER: Final = frozenset({"fence by epoch", "fence by claim id"})


@cache
def hunt(rules: Rules) -> Counterexample:
    """The shortest counterexample to broken rules, without losing a tail where it takes none. There is one, or the model is too weak."""
    found = search(rules, replace(_HUNT, restarts=0, late_beats=0, losses=1) if rules.name in _LOSSES_MATTER else _HUNT)
    assert found.counterexample is not None, f"nothing found against {rules.name} in {found.states} states"
    return found.counterexample


def prints(worlds: dict[str, Bounds]) -> Iterator[tuple[SearchResult, str]]:
    """Each search of the correct rules, with a line about it."""
    for name, bounds in worlds.items():
        for rules in CORRECT if worlds is REGULAR else (IN_STEPS,):
            started = time.perf_counter()
            found = search(rules, bounds)
            took = time.perf_counter() - started
            violations = 0 if found.counterexample is None else 1
            counts = f"{found.states:,} states, {found.steps:,} steps, depth {found.depth}, violations: {violations}"
            yield (
                found,
                f"{name} ({rules.name}): {counts}, {took:.1f} s",
            )


def report(worlds: dict[str, Bounds]) -> bool:
    """Print all; were there no violations, and a counterexample to each of the broken rules?"""
    total, is_clean = 0, True
    for found, line in prints(worlds):
        print(line, flush=True)
        total += found.states
        if found.counterexample is not None:
            is_clean = False
            _print_path(found.counterexample)
    print(f"{total:,} states in all\n")
    for rules in BROKEN:
        print(f"{rules.name} ({rules.because}):")
        _print_path(hunt(rules))
    return is_clean


def _print_path(found: Counterexample) -> None:
    print(f"  broken: {found.invariant.__doc__}")
    for action in found.path:
        print(f"    {action}")
