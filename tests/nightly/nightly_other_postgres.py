"""The suite runs on one version of PostgreSQL. Here its PostgreSQL tests run again on each other version of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.binaries import ServerBinary
from tests.support.postgres import postgres_binaries

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("found", postgres_binaries()[1:], ids=lambda found: found.name)
def test_the_tests_on_postgres_pass_on_another_version(found: ServerBinary) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "auto",
        "-k",
        "postgres",
        "tests/conformance",
        "tests/stores",
        "tests/faults",
        "tests/worker",
    ]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "TASKFLOW_POSTGRES": str(found.path)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-20_000:]
