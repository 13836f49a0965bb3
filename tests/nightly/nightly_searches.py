"""The long searches: the state machine, the whole contract, the application and the dashboard on every broker, and the model in its larger
worlds."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.conformance.machine import machine_for, run_machine
from tests.protocol_model.rules import IN_STEPS
from tests.protocol_model.search import FULL, search
from tests.protocol_model.world import Bounds
from tests.support import tiers
from tests.support.harnesses import BROKERS, NewestPostgresHarness, StoreHarness


@pytest.mark.parametrize("harness", [*BROKERS, NewestPostgresHarness], ids=lambda harness: harness.name)
def test_a_broker_does_as_its_model(harness: type[StoreHarness]) -> None:
    """The examples differ each time: a failure prints the seed."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    run_machine(machine_for(harness), examples=200, steps=50, seed=seed)


@pytest.mark.parametrize("bounds", FULL.values(), ids=FULL)
def test_the_protocol_holds_in_larger_worlds(bounds: Bounds) -> None:
    assert search(IN_STEPS, bounds).counterexample is None


def test_every_clause_holds_on_every_broker_and_each_mutant_fails_its_own() -> None:
    assert subprocess.run([sys.executable, "-m", "tests.conformance", "-n", "auto"], check=False).returncode == 0


@pytest.mark.parametrize("which", [["tests/unit/app", "tests/dashboard"], ["-m", "browser"]], ids=["app and dashboard", "browser"])
def test_the_application_and_the_dashboard_work_on_every_store(which: list[str]) -> None:
    """Other runs take memory and one other store in turn, and for most tests in a browser one store."""
    everywhere = {**os.environ, tiers.ON_ALL: "1"}
    assert subprocess.run([sys.executable, "-m", "pytest", "-n", "2", *which], check=False, env=everywhere).returncode == 0
