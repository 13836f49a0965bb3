"""The state machine's short form: always the same examples, on every broker. The long form is a command, see `machine`."""

from __future__ import annotations

import pytest

from tests.conformance.machine import machine_for, run_machine
from tests.conformance.mutants import Mutant, beats, claims, fences, home_of, settling, upkeep
from tests.support.homes import Home

# What single verbs in a random order find, and what only steps put together do.
FOUND: tuple[type[Mutant], ...] = (
    fences.SettlesByIdAndState,
    fences.SettlesByEpoch,
    settling.RepeatIsStale,
    claims.ForgetsItsClaims,
    claims.ClaimsForTheDead,
    beats.BeatRevives,
    upkeep.ForgetsTombstones,
)


def test_a_broker_does_as_its_model(any_home: type[Home]) -> None:
    """A few thousand verbs without a difference to the memory broker, and without an invariant broken."""
    machine = machine_for(any_home)

    run_machine(machine, examples=40, steps=40)

    assert machine.sent > 1_000


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds_what_is_broken(mutant: type[Mutant]) -> None:
    """Beside its model a broken broker does not get far."""
    with pytest.raises(AssertionError):
        run_machine(machine_for(home_of(mutant), is_compared=True), examples=60, steps=40, shrinks=False)
