"""Broken brokers, to test the suite: each is the reference broker, or the engine, with one rule wrong, and must fail the clauses named for
it.

Most are mistakes of real queues; `because` names a queue that made the mistake, or explains its cause. Where a defect inevitably shows in
two clauses, both are named.
"""

from __future__ import annotations

from typing import Final

from tests.conformance.mutants import engine, leases, operators, upkeep, waiting
from tests.conformance.mutants.engine import ENGINES
from tests.conformance.mutants.mutant import Mutant, harness_of

__all__ = ["ENGINES", "MUTANTS", "Mutant", "engine", "harness_of", "leases", "operators", "upkeep", "waiting"]

MUTANTS: Final[tuple[type[Mutant], ...]] = tuple(Mutant.__subclasses__())
