"""A job that kills its worker each time harms its neighbours once, and is found out."""

from __future__ import annotations

import time
from collections import Counter

from tests.cli.processes import PATIENCE, Running, Shell

HEALTHY = 300

TASKS = """
import asyncio, os
from taskflow import job

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@job
async def healthy(n: int) -> None:
    os.write(ledger, f"{n}\\n".encode())
    await asyncio.sleep(0.05)

@job
async def poison() -> None:
    os.write(ledger, b"poison\\n")
    os._exit(77)
"""


def test_a_poison_job_among_healthy_ones_takes_none_of_them_with_it(shell: Shell) -> None:
    """Two workers, started again whenever one dies. Each healthy job succeeds, most at once, the poison's neighbours at a later run."""
    shell.write("tasks.py", TASKS)
    numbered = (
        f"*[healthy.bind(n) for n in range({HEALTHY // 2})], poison.bind(), *[healthy.bind(n) for n in range({HEALTHY // 2}, {HEALTHY})]"
    )
    shell.send(numbered)
    workers: list[Running] = []
    give_up_at = time.monotonic() + PATIENCE
    while shell.counts().get("succeeded", 0) < HEALTHY:
        assert time.monotonic() < give_up_at, shell.counts()
        alive = [worker for worker in workers if worker.process.poll() is None]
        workers += [shell.taskflow("worker", "tasks", "--ttl", "1", "--concurrency", "50") for _ in range(2 - len(alive))]
        time.sleep(0.2)
    runs = Counter(shell.ledger())
    crashes = runs.pop("poison")
    assert crashes >= 2
    assert len(runs) == HEALTHY
    assert max(runs.values()) <= 3, runs.most_common(5)
    assert sum(number > 1 for number in runs.values()) <= 2 * 50
    assert shell.counts().get("failed", 0) == 0
