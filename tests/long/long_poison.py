"""A job that kills its worker after a while, as one does that runs out of memory, beside others that take as long."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest

from tests.cli.processes import Shell, ended_clearly, on_each_broker, until

HEALTHY = 60

TASKS = """
import asyncio, os
from pathlib import Path
from taskflow import job

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@job
async def healthy(n: int) -> None:
    await asyncio.sleep(4)
    os.write(ledger, f"{n}\\n".encode())

@job
async def poison() -> None:
    os.write(ledger, b"poison\\n")
    if Path("antidote").exists():
        return
    await asyncio.sleep(3)
    os._exit(77)
"""


@on_each_broker
@pytest.mark.parametrize("processes", [1, 3])
def test_a_slow_poison_job_is_found_out_alone(shell: Shell, processes: int) -> None:
    """Its record says of what its workers died, each time; and when it has been mended it can be retried."""
    shell.write("tasks.py", TASKS)
    shell.send(f"poison.bind(), *[healthy.bind(n) for n in range({HEALTHY})]")
    supervised = shell.taskflow("worker", "tasks", "--processes", str(processes), "--concurrency", "10")
    until(lambda: shell.ledger().count("poison") == 4, supervised, timeout=180.0)
    until(lambda: shell.counts() == {"succeeded": HEALTHY, "failed": 1}, supervised, timeout=120.0)
    print(f"{processes} workers: runs {Counter(Counter(shell.ledger()).values())}")
    assert Counter(shell.ledger()).keys() == {"poison", *map(str, range(HEALTHY))}

    [poison] = json.loads(shell.run("-m", "taskflow", "jobs", "--poison", "--json"))["jobs"]
    assert (poison["job"], poison["status"]) == ("tasks.poison", "failed")
    assert [error["message"].rpartition(": ")[2] for error in poison["errors"]] == ["exit code 77"] * 4

    shell.write("antidote", "")
    shell.run("-m", "taskflow", "retry", poison["id"])
    until(lambda: shell.counts() == {"succeeded": HEALTHY + 1}, supervised)
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0, 77])
