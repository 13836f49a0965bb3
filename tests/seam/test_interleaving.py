"""The rules of keys and of jobs that await others hold, whatever else happens between two effects of an operation."""

from __future__ import annotations

import pytest

from tests.seam import interleaving
from tests.seam.mutants import MUTANTS
from tests.support.changes import Changed

MAX_SEEDS = 40
"""How many runs a defect may take to show."""


@pytest.mark.parametrize("seed", range(12))
def test_the_rules_hold_between_any_two_effects(seed: int) -> None:
    """At each instant, one job with a key waits at most and one runs, and the key's record names both. At the end all have ended."""
    interleaving.run(seed)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defect_is_noticed(mutant: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seed shows it."""
    mutant.apply(monkeypatch)
    assert any(map(notices, range(MAX_SEEDS)))


def notices(seed: int) -> bool:
    try:
        interleaving.run(seed)
    except interleaving.Violation:
        return True
    except ExceptionGroup as group:
        return group.subgroup((interleaving.Violation, ValueError)) is not None
    return False
