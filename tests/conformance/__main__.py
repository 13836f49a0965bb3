"""`python -m tests.conformance [pytest's options]` runs every test on every broker, and checks that mutants fail only their clauses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conformance import clauses
from tests.support import tiers


def main() -> int:
    os.environ[tiers.ALL] = "1"
    code = pytest.main([str(Path(__file__).parent), "-Wignore::pytest.PytestAssertRewriteWarning", *sys.argv[1:]])
    from tests.conformance.mutants import MUTANTS, harness_of
    from tests.support.harnesses import ReferenceHarness

    wrong = {"reference": set(clauses.failing(ReferenceHarness))}
    wrong |= {mutant.__name__: set(clauses.failing(harness_of(mutant))) ^ mutant.breaks for mutant in MUTANTS}
    for name, differing in wrong.items():
        if differing:
            print(f"{name}: other clauses fail than those named for it: {sorted(differing)}")
    return 1 if any(wrong.values()) else int(code)


if __name__ == "__main__":
    sys.exit(main())
