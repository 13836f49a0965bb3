"""The long searches: the state machine, the whole contract and the pages in a browser on every broker, and the model in its larger
worlds. And what the suite itself detects: the state machine finds broken brokers, and the clauses make every legal move."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest

from taskflow.broker.engine import decisions, moves
from taskflow.broker.engine.records import BURIED, READY, RUNNING
from taskflow.model.transitions import MOVES, Event
from tests.conformance import clauses
from tests.conformance.machine import machine_for, run_machine
from tests.conformance.mutants import Mutant, engine, harness_of, leases, upkeep
from tests.conformance.rules import BrokerMachine
from tests.protocol_model.rules import IN_STEPS
from tests.protocol_model.search import FULL, search
from tests.protocol_model.world import Bounds
from tests.support import tiers
from tests.support.changes import Changed
from tests.support.harnesses import BROKERS, MemoryHarness, NewestPostgresHarness, StoreHarness


@pytest.mark.parametrize("harness", [*BROKERS, NewestPostgresHarness], ids=lambda harness: harness.name)
def test_a_broker_does_as_its_model(harness: type[StoreHarness]) -> None:
    """The examples differ each time: a failure prints the seed."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    run_machine(machine_for(harness), examples=200, steps=50, seed=seed)


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


def test_every_legal_move_is_made_by_the_test_of_a_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses all other moves. Claims are the stores' own."""
    made, move = set[tuple[int, Event, int]](), moves.move

    def noted(draft: Any, job: Any, event: Event, to: int) -> None:
        made.add((BURIED if event is Event.ENQUEUE else job.header["status"], event, to))
        move(draft, job, event, to)

    monkeypatch.setattr(moves, "move", noted)
    monkeypatch.setattr(decisions, "move", noted)
    assert clauses.failing(MemoryHarness) == {}
    assert moves._LEGAL - made == {(READY, Event.CLAIM, RUNNING)}
    assert {event for _, event in MOVES} == set(Event)


@pytest.mark.parametrize("bounds", FULL.values(), ids=FULL)
def test_the_protocol_holds_in_larger_worlds(bounds: Bounds) -> None:
    assert search(IN_STEPS, bounds).counterexample is None


def test_every_clause_holds_on_every_broker_and_each_mutant_fails_its_own() -> None:
    assert subprocess.run([sys.executable, "-m", "tests.conformance", "-n", "auto"], check=False).returncode == 0


def test_the_dashboard_works_in_a_browser_on_every_store() -> None:
    """Other runs take one store in turn for most of these tests."""
    everywhere = {**os.environ, tiers.ALL: "1"}
    assert subprocess.run([sys.executable, "-m", "pytest", "-n", "2", "-m", "browser"], check=False, env=everywhere).returncode == 0


def test_pyright_accepts_the_tests() -> None:
    """.ci/run checks the package with it, and the tests with mypy alone."""
    assert subprocess.run([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], check=False).returncode == 0
