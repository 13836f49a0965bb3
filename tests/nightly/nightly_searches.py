"""The long search: the state machine on every broker."""

from __future__ import annotations

import random

import pytest

from tests.conformance.machine import machine_for, run_machine
from tests.support.harnesses import BROKERS, NewestPostgresHarness, StoreHarness


@pytest.mark.parametrize("harness", [*BROKERS, NewestPostgresHarness], ids=lambda harness: harness.name)
def test_a_broker_does_as_its_model(harness: type[StoreHarness]) -> None:
    """Other examples each time: the seed is printed with a failure."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    run_machine(machine_for(harness), examples=200, steps=50, seed=seed)
