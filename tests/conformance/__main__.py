"""`python -m tests.conformance`: what the suite holds, run on every broker and against every mutant, in numbers."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

import pytest

from tests.conformance import clauses
from tests.conformance.mutants import MUTANTS, harness_of
from tests.support.harnesses import BROKERS, ReferenceHarness, StoreHarness

BESIDE: Final = {
    "moves": "tests that each legal move is made, on every broker",
    "traces": "counterexamples of the model answered rightly, or convicting the mutant that they are for",
    "brokers": "claims on loops, threads, siblings and restarts",
    "failpoints": "failpoints passed: replies lost, a process killed, a process held up",
}


def main() -> int:
    tests = clauses.clause_tests()
    claimed = {test.clause for test in tests}
    print(f"{len(clauses.clauses()):5} clauses in the contract, {len(claimed)} of them claimed by {len(tests)} tests")
    failures = _report(ReferenceHarness) + sum(map(_report, BROKERS))
    caught = sum(_is_caught_exactly(mutant.__name__, clauses.failing(harness_of(mutant)), mutant.breaks) for mutant in MUTANTS)
    print(f"{caught:5} of {len(MUTANTS)} mutants caught, each by the clauses named for it and no other")
    failures += sum(_run(module, what) for module, what in BESIDE.items())
    return 1 if failures or caught < len(MUTANTS) else 0


def _report(harness: type[StoreHarness]) -> int:
    """How many of the tests fail on that kind of store."""
    outcomes = list(clauses.run_all(harness))
    failed = [(test, error) for test, error in outcomes if error is not None]
    skipped = sum(isinstance(error, clauses.Skipped) for _, error in failed)
    for test, error in failed:
        print(f"      {'skipped' if isinstance(error, clauses.Skipped) else 'FAILED'} on {harness.name}: {test.name}: {error}")
    print(f"{len(outcomes) - len(failed):5} tests passed on {harness.name}, {skipped} skipped, {len(failed) - skipped} failed")
    return len(failed) - skipped


class _Counter:
    """Counts what pytest reports."""

    def __init__(self) -> None:
        self.outcomes = Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1


def _run(module: str, what: str) -> int:
    """How many of a module's tests fail, by pytest."""
    counter = _Counter()
    with contextlib.redirect_stdout(io.StringIO()):
        arguments = [str(Path(__file__).with_name(f"test_{module}.py")), "-Wignore::pytest.PytestAssertRewriteWarning"]
        pytest.main(arguments, plugins=[counter])
    print(f"{counter.outcomes['passed']:5} {what}, {counter.outcomes['skipped']} skipped, {counter.outcomes['failed']} failed")
    return counter.outcomes["failed"]


def _is_caught_exactly(name: str, noticed: Collection[str], breaks: frozenset[str]) -> bool:
    if set(noticed) == breaks:
        return True
    print(f"      {name}: noticed by {sorted(noticed)}, named are {sorted(breaks)}")
    return False


if __name__ == "__main__":
    sys.exit(main())
