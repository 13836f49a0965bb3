"""All cases of all tests pass on every store, and reach at least 95 % of the package's lines and branches, in all processes that they
start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT
from tests.support import tiers


def test_the_tests_reach_the_package(tmp_path: Path) -> None:
    environment = {**os.environ, "COVERAGE_FILE": str(tmp_path / "coverage"), tiers.ALL: "1"}

    def coverage(*arguments: str) -> int:
        return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=environment, check=False).returncode

    assert coverage("run", "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider") == 0
    assert coverage("combine", "--quiet") == 0
    assert coverage("report", "--fail-under=95") == 0
