"""A job that kills its worker each time harms its neighbours once, and is then isolated."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest

from tests.cli.processes import Shell, counts_of, ended_clearly, until

pytestmark = pytest.mark.unmeasured

HEALTHY = 400

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


@pytest.mark.parametrize(("processes", "new_store"), [(1, "sqlite"), (2, "redis")], indirect=["new_store"])
def test_a_poison_job_delays_its_neighbours_by_seconds_and_takes_none_of_them_with_it(shell: Shell, processes: int) -> None:
    """Each healthy job succeeds, most at once, the poison's neighbours in a later run; and all of them before the poison's fourth run, for
    which it waits half a minute, and which is its last."""
    shell.write("tasks.py", TASKS)
    half = HEALTHY // 2
    shell.send(f"*[healthy.bind(n) for n in range({half})], poison.bind(), *[healthy.bind(n) for n in range({half}, {HEALTHY})]")
    began_at = time.monotonic()
    supervised = shell.taskflow("worker", "tasks", "--processes", str(processes), "--concurrency", "50", "--log-level", "warning")
    until(lambda: counts_of(shell.environment["TASKFLOW_BROKER"])["succeeded"] >= HEALTHY, supervised)
    print(f"{processes} workers: {HEALTHY} healthy jobs in {time.monotonic() - began_at:.1f} s")
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0, 77])
    runs = Counter(shell.ledger())
    assert 2 <= runs.pop("poison") <= 3
    assert len(runs) == HEALTHY
    assert max(runs.values()) <= 3, runs.most_common(5)
    assert sum(number > 1 for number in runs.values()) <= 2 * 50
    assert shell.counts().get("failed", 0) == 0
