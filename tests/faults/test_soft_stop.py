"""A worker that is signalled while a child process tidies up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import TIMEOUT, Running, Shell
from tests.worker.child_scene import gone, written

ROOT = Path(__file__).parents[2]

TASKS = """
import os
import time
from pathlib import Path
from taskflow import JobStopping, job

@job(runs_in="process", stop_grace=60)
def works() -> None:
    Path("pid.new").write_text(str(os.getpid()))
    Path("pid.new").rename("pid")
    try:
        time.sleep(60)
    except JobStopping as stopping:
        print("tidying up after", stopping.reason, flush=True)
        while not Path("go").exists():
            time.sleep(0.01)
        print("tidied up", flush=True)
        raise
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as made:
        made.environment["PYTHONPATH"] = str(ROOT)
        made.write("tasks.py", TASKS)
        yield made


async def at_work(shell: Shell) -> tuple[Running, int]:
    """Return a worker and the process of the child that runs its job."""
    worker = shell.worker("--grace", "60")
    shell.send("works.bind()")
    [pid] = await written(shell.folder / "pid")
    return worker, pid


async def test_the_second_signal_asks_and_the_worker_waits_for_the_tidying_up(shell: Shell) -> None:
    worker, pid = await at_work(shell)
    worker.signal(signal.SIGTERM)
    worker.wait_for("winding down: 1 running")
    await asyncio.sleep(0.1)  # signals in quick succession count as one
    worker.signal(signal.SIGTERM)
    worker.wait_for("tidying up after shutdown")
    (shell.folder / "go").touch()
    assert worker.end() == 124
    assert "tidied up" in worker.said
    await gone(pid)


async def test_a_signal_during_the_tidying_up_of_a_cancelled_run_lets_it_finish(shell: Shell) -> None:
    worker, pid = await at_work(shell)
    shell.run("-m", "taskflow", "cancel", "--all")
    worker.wait_for("tidying up after cancelled")
    worker.signal(signal.SIGTERM)
    worker.wait_for("winding down: 1 running")
    (shell.folder / "go").touch()
    assert worker.end() == 0
    assert "tidied up" in worker.said
    await gone(pid)


async def test_the_third_signal_ends_the_worker_and_its_child_at_once(shell: Shell) -> None:
    worker, pid = await at_work(shell)
    for heard in ("winding down: 1 running", "tidying up after shutdown"):
        worker.signal(signal.SIGTERM)
        worker.wait_for(heard)
        await asyncio.sleep(0.1)
    worker.signal(signal.SIGTERM)
    assert worker.end() == 128 + signal.SIGTERM
    assert "tidied up" not in worker.said
    async with asyncio.timeout(TIMEOUT):
        await gone(pid)
