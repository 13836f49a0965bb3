"""Batches while their worker is killed: each job runs once more at most, and has its own outcome."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.cli.processes import Running, Shell, on_each_broker, until

_TASKS = """
import asyncio, os
from pathlib import Path
from taskflow import Backoff, Batch, Concurrency, Failure, job

OPTIONS = {"batch": Batch(size=int(os.environ["SIZE"]), within=3600.0), "max_attempts": 2, "retry": Backoff(base=0.0)}

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def write(event: str, numbers: list[int]) -> None:
    os.write(ledger, "".join(f"{event} {os.getpid()} {n}\\n" for n in numbers).encode())

async def call(numbers: list[int]) -> list[int | Failure]:
    write("begin", numbers)
    while not Path("release").exists():
        await asyncio.sleep(0.01)
    write("end", numbers)
    return [Failure(f"no {n}") if n == 7 else 10 * n for n in numbers]

@job(**OPTIONS)
async def free(numbers: list[int]) -> list[int | Failure]:
    return await call(numbers)

@job(limits=[Concurrency(10)], **OPTIONS)
async def limited(numbers: list[int]) -> list[int | Failure]:
    return await call(numbers)
"""


def a_worker(shell: Shell) -> Running:
    return shell.worker("--ttl", "2", "--concurrency", "4")


def killed(running: Running) -> None:
    running.signal(signal.SIGKILL)
    running.end()


@on_each_broker
@pytest.mark.unmeasured
@pytest.mark.parametrize("job", ["free", "limited"])
@pytest.mark.parametrize("moment", ["gathering", "calling"])
def test_jobs_of_a_killed_worker_are_gathered_again(shell: Shell, moment: str, job: str) -> None:
    """The next worker runs them at once, with nothing else beside them. Each has its outcome: one of them fails, and is retried alone."""
    if shell.environment["TASKFLOW_BROKER"].startswith("sqlite"):
        shell.environment["TASKFLOW_BROKER"] += "?shared=1"
    shell.environment["SIZE"] = "10" if moment == "calling" else "20"
    shell.write("tasks.py", _TASKS)
    first = a_worker(shell)
    shell.send(*(f"{job}.bind({n})" for n in range(10)))
    until(lambda: shell.counts()["running"] == 10)
    until(lambda: moment == "gathering" or len(shell.ledger()) == 10)
    killed(first)
    shell.write("release", "")
    second = a_worker(shell)
    # The retry of 7 waits for others, or runs at once if it comes while the suspects are still tried.
    until(lambda: shell.counts() in (Counter(succeeded=9, running=1), Counter(succeeded=9, failed=1)))
    second.signal(signal.SIGTERM)
    assert second.end() == 0, second.said
    assert shell.counts() == Counter(succeeded=9, failed=1)
    lost = [("begin", first.process.pid, n) for n in range(10)] if moment == "calling" else []
    ran = [(event, second.process.pid, n) for n in (*range(10), 7) for event in ("begin", "end")]
    assert Counter(map(parsed, shell.ledger())) == Counter([*lost, *ran])
    assert "RuntimeError: no 7" in shell.run("-m", "taskflow", "failures")


def parsed(line: str) -> tuple[str, int, int]:
    event, process, n = line.split()
    return event, int(process), int(n)
