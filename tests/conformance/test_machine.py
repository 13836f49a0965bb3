"""The state machine's short form: always the same examples, on every broker. The long forms are a command (see `machine`) and nightly."""

from __future__ import annotations

from typing import Final

import pytest

from tests.conformance.machine import machine_for, run_machine
from tests.conformance.mutants import Mutant, engine, harness_of, leases, upkeep
from tests.conformance.rules import BrokerMachine
from tests.support.changes import Changed
from tests.support.harnesses import MemoryHarness, StoreHarness

pytestmark = pytest.mark.slow

# What single operations in a random order find, and what only combined steps find.
FOUND: tuple[type[Mutant], ...] = (
    leases.SettlesByIdAndState,
    leases.SettlesByEpoch,
    leases.RepeatIsStale,
    leases.ForgetsItsClaims,
    leases.ClaimsForTheDead,
    leases.BeatRevives,
    upkeep.ForgetsTombstones,
)


EXAMPLES: Final = {"memory": 12, "sqlite": 10, "redis": 8, "postgres": 5}
"""Brokers with slower operations run fewer. `python -m tests.nightly` runs 200 on each broker."""


def test_a_broker_does_as_its_model(any_harness: type[StoreHarness]) -> None:
    """Hundreds of operations run without a difference from the reference broker, and without breaking an invariant."""
    machine = machine_for(any_harness)

    run_machine(machine, examples=EXAMPLES[any_harness.name], steps=40)

    assert machine.sent > 40 * EXAMPLES[any_harness.name]


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds_what_is_broken(mutant: type[Mutant]) -> None:
    """Beside its model, a broken broker does not get far."""
    with pytest.raises(AssertionError):
        _run_seeds(machine_for(harness_of(mutant), is_compared=True))


@pytest.mark.parametrize("mutant", engine.FOUND, ids=lambda mutant: mutant.name)
def test_the_machine_finds_a_changed_engine(mutant: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference broker does not share the engine, so it reveals the engine's errors."""
    mutant.apply(monkeypatch)

    with pytest.raises(AssertionError):
        _run_seeds(machine_for(MemoryHarness))


def _run_seeds(machine: type[BrokerMachine]) -> None:
    for seed in range(6):
        run_machine(machine, examples=30, steps=40, seed=seed, shrinks=False)
