"""The worker's process with the times that users have: none is shortened."""

from __future__ import annotations

import signal
import time
from collections import defaultdict

from tests.cli.processes import Shell, ended_clearly

ALL = 10_000
PROMISED = 25.0

TASKS = """
import asyncio, os, time
from taskflow import JobContext, job

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
mine = 0

@job
async def note(ctx: JobContext, n: int) -> None:
    global mine
    os.write(ledger, f"{n} {time.time()}\\n".encode())
    mine += 1
    if "STOPS_HALF_WAY" in os.environ and mine >= 5_000:
        print("half-way", flush=True)
        await asyncio.Event().wait()

@job
async def block() -> None:
    print("begun", flush=True)
    time.sleep(3600)
"""


def test_the_jobs_of_a_killed_worker_start_again_within_25_s(shell: Shell) -> None:
    """10,000 jobs, a worker killed half-way, another started: none is lost."""
    shell.write("tasks.py", TASKS)
    shell.run("-c", f"from taskflow import enqueue_sync\nfrom tasks import note\nenqueue_sync(note.bind(n) for n in range({ALL}))")
    shell.environment["STOPS_HALF_WAY"] = "1"
    first = shell.taskflow("worker", "tasks", "--log-level", "warning")
    first.wait_for("half-way")
    del shell.environment["STOPS_HALF_WAY"]
    killed_at = time.time()
    first.signal(signal.SIGKILL)
    first.end()
    held = shell.counts()["running"]
    ended_clearly(shell.taskflow("worker", "tasks", "--drain", "--log-level", "warning"), [0])
    runs: dict[int, list[float]] = defaultdict(list)
    for line in shell.ledger():
        n, at = line.split()
        runs[int(n)].append(float(at))
    assert runs.keys() == set(range(ALL))
    again = [max(times) - killed_at for times in runs.values() if len(times) > 1]
    assert 0 < len(again) <= held
    print(f"{held} were held; started again {min(again):.1f} to {max(again):.1f} s after the kill")
    assert max(again) <= PROMISED


def test_a_worker_whose_loop_a_job_blocks_ends_by_the_first_signal(shell: Shell) -> None:
    """It ends after the grace period and `stop_timeout`, by force, because the loop cannot handle the signal."""
    shell.write("tasks.py", TASKS)
    shell.send("block.bind()")
    worker = shell.worker("--grace", "1")
    worker.wait_for("begun")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [124])
    assert "did not exit in time" in worker.said
