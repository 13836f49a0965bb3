"""`taskflow worker` as process 1 of a container."""

from __future__ import annotations

import pytest

from tests.cli.processes import LEDGER, Shell, ended_clearly
from tests.cli.supervised import IN_A_CONTAINER

ORPHAN = (
    LEDGER
    + """
import os, signal, subprocess, time
from taskflow import job

@job
def leave_an_orphan() -> None:
    said = subprocess.run(["sh", "-c", "sleep 0.1 >/dev/null & echo $!"], capture_output=True, text=True, check=True)
    orphan = int(said.stdout)
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            os.kill(orphan, 0)  # a zombie takes signals too
        except ProcessLookupError:
            write("reaped")
            break
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGTERM)
"""
)


@pytest.mark.parametrize("processes", [[], ["--processes", "1"]], ids=["plain", "supervised"])
def test_as_pid1_it_reaps_what_others_leave_behind(shell: Shell, unshare: str, processes: list[str]) -> None:
    shell.write("tasks.py", ORPHAN)
    shell.send("leave_an_orphan.bind()")
    worker = shell.start("-c", IN_A_CONTAINER, unshare, "-m", "taskflow", "worker", "tasks", *processes)
    ended_clearly(worker, [0])
    assert shell.ledger() == ["reaped"]
