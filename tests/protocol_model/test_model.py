"""The protocol holds in every state within the bounds, and the search is strong enough to find where it would not.

The nightly run searches larger worlds, and late beats.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.protocol_model import invariants
from tests.protocol_model.invariants import Invariant
from tests.protocol_model.rules import BROKEN, CORRECT, Rules
from tests.protocol_model.search import LEAN, REGULAR, search
from tests.protocol_model.world import Bounds

pytestmark = pytest.mark.unmeasured  # it searches a model of the protocol, not the package

FOUND: dict[str, tuple[int, Invariant]] = {
    "fence by id": (5, invariants.a_settlement_ends_its_own_run),
    "fence by id and state": (7, invariants.a_settlement_ends_its_own_run),
    "fence by worker name": (7, invariants.a_settlement_ends_its_own_run),
    "fence by epoch": (6, invariants.a_settlement_ends_its_own_run),
    "fence by claim id": (8, invariants.a_settlement_ends_its_own_run),
    "row removed first": (4, invariants.every_lease_is_in_hands),
    "jobs released first": (6, invariants.every_lease_is_in_hands),
    "claim without session check": (4, invariants.every_lease_is_in_hands),
    "claim without memory": (3, invariants.a_request_is_granted_once),
    "claim without memory or ghosts": (2, invariants.every_lease_is_in_hands),
    "old request claims": (5, invariants.a_request_is_granted_once),
    "no ghosts": (3, invariants.every_lease_is_in_hands),
    "ghosts by name alone": (3, invariants.the_living_keep_their_jobs),
    "settle without repeat": (4, invariants.an_answer_tells_the_truth),
    "beat revives": (4, invariants.the_dead_stay_dead),
    "lapse by age": (5, invariants.the_living_keep_their_jobs),
}
"""The number of steps of the shortest counterexample, and the invariant that it breaks; the design promises at most eleven."""

LOSSES_MATTER = ("fence by epoch", "fence by claim id")

each_correct = pytest.mark.parametrize("rules", CORRECT, ids=lambda rules: rules.name)
each_broken = pytest.mark.parametrize("rules", BROKEN, ids=lambda rules: rules.name)


@each_correct
@pytest.mark.parametrize("bounds", REGULAR.values(), ids=REGULAR)
@pytest.mark.sampled(2)
def test_no_order_of_events_breaks_an_invariant(rules: Rules, bounds: Bounds) -> None:
    found = search(rules, bounds)

    assert found.counterexample is None
    assert found.states > 1_000, "the world has shrunk to nothing: what it proves is nothing, too"


@each_broken
@pytest.mark.sampled(3)
def test_broken_rules_are_found_out_by_a_short_path(rules: Rules) -> None:
    found = search(rules, Bounds(restarts=0, late_beats=0) if rules.name in LOSSES_MATTER else Bounds(restarts=1, losses=0)).counterexample

    assert found is not None
    assert (len(found.path), found.invariant) == FOUND[rules.name]


@pytest.mark.parametrize("rules", [rules for rules in BROKEN if rules.name in LOSSES_MATTER], ids=lambda rules: rules.name)
def test_half_of_the_fence_would_do_if_stores_never_lost_their_tail(rules: Rules) -> None:
    """Both halves of (epoch, claim id) are needed only for lost changes; this verifies the design's claim."""
    assert search(rules, replace(REGULAR["a restart"], losses=0)).counterexample is None


@pytest.mark.parametrize("rules", [rules for rules in BROKEN if not rules.lapses_are_marked], ids=lambda rules: rules.name)
def test_lean_worlds_leave_out_states_but_no_harm(rules: Rules) -> None:
    """The reductions of the larger worlds hide no broken rules. Rules that mark lapses are tested apart: they need a beat between lapse and
    upkeep."""
    assert search(rules, replace(LEAN, epochs=2, restarts=0, losses=1, requests=2)).counterexample is not None
