"""Random orders of operations, mishaps and the passing of time, on any broker beside its model. `rules` has what may happen.

`python -m tests.conformance.machine --broker sqlite --steps 10000 --seed 1` runs until it has sent that many operations, prints how often
it took each rule, and ends with "without a difference" or with the shortest way to the first difference that hypothesis finds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, seed as seeded, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conformance.rules import BrokerMachine
from tests.support.harnesses import BROKERS, ReferenceHarness, StoreHarness


def machine_for(harness: type[StoreHarness], *, is_compared: bool | None = None) -> type[BrokerMachine]:
    """Return the machine for that kind of store, with its own counts."""
    fields: dict[str, Any] = {"harness": harness, "is_compared": is_compared, "taken": Counter(), "sent": 0}
    return type(f"{harness.name.title()}Machine", (BrokerMachine,), fields)


def run_machine(machine: type[BrokerMachine], *, examples: int, steps: int, seed: int | None = None, shrinks: bool = True) -> None:
    """Raise what the machine finds, with the shortest way to it if it `shrinks`. Without a seed the examples are always the same."""
    shape = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
    )
    run_state_machine_as_test(machine if seed is None else seeded(seed)(machine), settings=shape)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.machine", description=__doc__)
    parser.add_argument("--broker", choices=[harness.name for harness in BROKERS], default="memory")
    parser.add_argument("--steps", type=int, default=10_000, help="verbs to send at least")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    machine = machine_for(next(harness for harness in BROKERS if harness.name == chosen.broker))
    seed = chosen.seed
    while machine.sent < chosen.steps:
        run_machine(machine, examples=20, steps=50, seed=seed)
        seed += 1_000_003
    for name, count in machine.taken.most_common():
        print(f"{count:8}  {name.replace('_', ' ')}")
    judges = "by the invariants" if machine.harness is ReferenceHarness else "by the invariants and beside its model"
    print(f"{machine.sent:8}  verbs sent to {chosen.broker}, judged {judges}: without a difference")


if __name__ == "__main__":
    main()
