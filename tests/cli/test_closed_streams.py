"""Commands whose stdin, stdout or stderr the caller has closed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.cli.processes import Shell

TASKS = """
import os
from pathlib import Path
from taskflow import job

@job(max_attempts=1)
async def look() -> None:
    Path("descriptors").write_text(" ".join(os.readlink(f"/proc/self/fd/{number}") for number in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the test reads /proc")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["worker", "supervisor"])
@pytest.mark.sampled(3)
def test_a_worker_opens_closed_descriptors_on_the_null_device(shell: Shell, closed: str, options: Sequence[str]) -> None:
    shell.write("tasks.py", TASKS)
    shell.send("look.bind()")
    command = [sys.executable, "-m", "taskflow", "worker", "tasks", "--drain", *options]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], cwd=shell.folder, env=shell.environment, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = (shell.folder / "descriptors").read_text().split()
    numbers = [number for number, sign in enumerate(("<&-", " >&-", "2>&-")) if sign in f" {closed}"]
    assert [found[number] for number in numbers] == [os.devnull] * len(numbers)
