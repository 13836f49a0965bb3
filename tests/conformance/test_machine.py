"""The state machine's short form: always the same examples, on every broker. The long forms are a command (see `machine`) and nightly."""

from __future__ import annotations

from typing import Final

import pytest

from tests.conformance.machine import machine_for, run_machine
from tests.support.harnesses import StoreHarness

pytestmark = pytest.mark.slow

EXAMPLES: Final = {"memory": 12, "sqlite": 10, "redis": 8, "postgres": 5}
"""Brokers with slower operations run fewer. `python -m tests.nightly` runs 200 on each broker."""


def test_a_broker_does_as_its_model(any_harness: type[StoreHarness]) -> None:
    """Hundreds of operations run without a difference from the reference broker, and without breaking an invariant."""
    machine = machine_for(any_harness)

    run_machine(machine, examples=EXAMPLES[any_harness.name], steps=40)

    assert machine.sent > 40 * EXAMPLES[any_harness.name]
