"""The suite claims what the seam promises: no clause without a test, no test without a clause."""

from __future__ import annotations

import re
from pathlib import Path

from taskflow.broker.engine import seam


def test_every_clause_has_a_test_and_every_test_a_clause() -> None:
    clauses = re.findall(r"^  \[([a-z_]+)\] ", seam.__doc__ or "", re.MULTILINE)
    tests = Path(__file__).parent.glob("test_*.py")
    names = {
        name for path in tests for name in re.findall(r"^(?:async )?def test_(\w+)\(.*(?:store|kind): ", path.read_text(), re.MULTILINE)
    }
    assert {name.split("__")[0] for name in names} == set(clauses)
