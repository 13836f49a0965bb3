"""Every dependency that pyproject.toml declares is used, and every package that is imported is declared."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.imports import ROOT

PACKAGE = ["taskflow"]
ALL = ["taskflow", "tests", "benchmarks", "docs", "--optional-dependencies-dev-groups", "none"]


@pytest.mark.parametrize("arguments", [PACKAGE, ALL], ids=["the package", "with tests, pages and extras"])
def test_dependencies_are_used_and_declared(arguments: list[str]) -> None:
    """The package alone may use nothing of the extras that are for tests and pages."""
    ran = subprocess.run([sys.executable, "-m", "deptry", *arguments, "--no-ansi"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
