"""The suite claims what the contract says: no clause without a test, no test without a clause."""

from __future__ import annotations

from pathlib import Path

from tests.conformance import clauses
from tests.support.harnesses import BROKERS


def test_every_clause_is_claimed_and_nothing_else() -> None:
    """The bracketed names in `protocol` and `admin` are those in the names of tests."""
    assert {test.clause for test in clauses.clause_tests()} == clauses.clauses()


def test_every_test_says_its_claim() -> None:
    """The docstring of a clause's test states its claim."""
    assert [test.name for test in clauses.clause_tests() if not test.claim] == []


def test_no_module_of_clauses_is_left_out() -> None:
    """Each test module here that uses a world is searched for clauses, or declares that it has none."""
    others = {"brokers", "clauses", "machine", "mutants", "traces", "failpoints"}
    found = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}

    assert found - others == set(clauses.MODULES)


def test_every_broker_has_joined() -> None:
    """A broker's package is tested as soon as it exists: none is left out because it does not import."""
    import taskflow.broker

    packages = {path.parent.name for folder in taskflow.broker.__path__ for path in Path(folder).glob("*/__init__.py")}

    assert {harness.name for harness in BROKERS} == packages - {"engine"}
