"""The protocol holds in every state within the bounds, and the search is strong enough to see where it would not.

Nightly searches larger worlds, and late beats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.protocol_model import invariants
from tests.protocol_model.report import LEAN, REGULAR, hunt
from tests.protocol_model.rules import BROKEN, CORRECT, Rules
from tests.protocol_model.search import search
from tests.protocol_model.world import Bounds

pytestmark = [
    pytest.mark.xdist_group("protocol model"),  # what one test has searched is there for the next
    pytest.mark.unmeasured,  # it searches a model of the protocol, not the package
]

SHORTEST = {
    "fence by id": 5,
    "fence by id and state": 7,
    "fence by worker name": 7,
    "fence by epoch": 6,
    "fence by claim id": 8,
    "row removed first": 4,
    "jobs released first": 6,
    "claim without session check": 4,
    "claim without memory": 3,
    "claim without memory or ghosts": 2,
    "old request claims": 5,
    "no ghosts": 3,
    "ghosts by name alone": 3,
    "settle without repeat": 4,
    "beat revives": 4,
    "lapse by age": 5,
}
"""Steps of the shortest counterexample; the design promises at most eleven."""

BREAKS = {
    "fence by id": invariants.a_settlement_ends_its_own_run,
    "fence by id and state": invariants.a_settlement_ends_its_own_run,
    "fence by worker name": invariants.a_settlement_ends_its_own_run,
    "fence by epoch": invariants.a_settlement_ends_its_own_run,
    "fence by claim id": invariants.a_settlement_ends_its_own_run,
    "row removed first": invariants.every_lease_is_in_hands,
    "jobs released first": invariants.every_lease_is_in_hands,
    "claim without session check": invariants.every_lease_is_in_hands,
    "claim without memory": invariants.a_request_is_granted_once,
    "claim without memory or ghosts": invariants.every_lease_is_in_hands,
    "old request claims": invariants.a_request_is_granted_once,
    "no ghosts": invariants.every_lease_is_in_hands,
    "ghosts by name alone": invariants.the_living_keep_their_jobs,
    "settle without repeat": invariants.an_answer_tells_the_truth,
    "beat revives": invariants.the_dead_stay_dead,
    "lapse by age": invariants.the_living_keep_their_jobs,
}


def _named(items: Iterable[Rules]) -> list[object]:
    return [pytest.param(rules, id=rules.name) for rules in items]


@pytest.mark.parametrize("rules", _named(CORRECT))
@pytest.mark.parametrize("bounds", [pytest.param(bounds, id=name) for name, bounds in REGULAR.items() if name != "late beats"])
def test_no_order_of_events_breaks_an_invariant(rules: Rules, bounds: Bounds) -> None:
    found = search(rules, bounds)

    assert found.counterexample is None
    assert found.states > 1_000, "the world has shrunk to nothing: what it proves is nothing, too"


@pytest.mark.parametrize("rules", _named(BROKEN))
def test_broken_rules_are_found_out_by_a_short_path(rules: Rules) -> None:
    found = hunt(rules)

    assert (len(found.path), found.invariant) == (SHORTEST[rules.name], BREAKS[rules.name])
    assert len(found.path) <= 11


@pytest.mark.parametrize(
    "rules", [pytest.param(rules, id=rules.name) for rules in BROKEN if rules.name in ("fence by epoch", "fence by claim id")]
)
def test_half_of_the_fence_would_do_if_stores_never_lost_their_tail(rules: Rules) -> None:
    """Both halves of (epoch, claim id) are there for the loss of a tail only; this keeps the claim of the design honest."""
    assert search(rules, replace(REGULAR["a restart"], losses=0)).counterexample is None


@pytest.mark.parametrize("rules", _named(rules for rules in BROKEN if not rules.lapses_are_marked))
def test_lean_worlds_leave_out_states_but_no_harm(rules: Rules) -> None:
    """What the larger worlds go without does not hide broken rules (a beat between lapse and upkeep, looked at by one of them, apart)."""
    assert search(rules, replace(LEAN, epochs=2, restarts=0, losses=1, requests=2)).counterexample is not None
