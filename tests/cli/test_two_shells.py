"""Two shells and one file: a script sends 10,000 jobs and ends, workers in other processes do them."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from taskflow.worker.runs import AHEAD
from tests.cli.processes import Shell, ended_clearly

pytestmark = pytest.mark.unmeasured

TASKS = """
import asyncio, os
from taskflow import JobContext, job

ledger = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
mine = 0

@job
async def note(ctx: JobContext, n: int) -> None:
    global mine
    os.write(ledger, f"{n} {ctx.epoch}\\n".encode())
    mine += 1
    if "STOPS_HALF_WAY" in os.environ and mine >= 4_000:
        print("half-way", flush=True)
        await asyncio.Event().wait()
"""

SEND = """
from taskflow import enqueue_sync
from tasks import note

enqueue_sync(note.bind(n) for n in range(10_000))
"""

ALL = 10_000
CONCURRENCY = 50


@pytest.fixture
def sent(shell: Shell) -> Shell:
    shell.write("tasks.py", TASKS)
    shell.write("send.py", SEND)
    shell.run("send.py")
    return shell


def runs_of(shell: Shell) -> Counter[int]:
    return Counter(int(line.split()[0]) for line in shell.ledger())


def test_a_worker_does_each_job_once(sent: Shell) -> None:
    assert sent.counts() == {"ready": ALL}
    ended_clearly(sent.taskflow("worker", "tasks", "--drain", "--log-level", "warning"), [0])
    assert runs_of(sent) == Counter(range(ALL))
    assert sent.counts() == {"succeeded": ALL}


def test_two_workers_do_each_job_once(sent: Shell) -> None:
    workers = [sent.taskflow("worker", "tasks", "--drain", "--log-level", "warning") for _ in range(2)]
    for worker in workers:
        ended_clearly(worker, [0])
    assert runs_of(sent) == Counter(range(ALL))


def test_a_killed_worker_loses_nothing(sent: Shell) -> None:
    """What it held, another starts again; what it had settled is not repeated. A session that lapses in 20 s: see tests.long."""
    sent.environment["STOPS_HALF_WAY"] = "1"
    first = sent.taskflow("worker", "tasks", "--concurrency", str(CONCURRENCY), "--ttl", "2", "--log-level", "warning")
    first.wait_for("half-way")
    first.signal(signal.SIGKILL)
    first.end()
    del sent.environment["STOPS_HALF_WAY"]
    held = sent.counts().get("running", 0)
    assert 0 < held <= (1 + 2 * AHEAD) * CONCURRENCY  # what runs, what has ended and is not settled yet, and what was to begin next
    ended_clearly(sent.taskflow("worker", "tasks", "--drain", "--ttl", "2", "--log-level", "warning"), [0])
    runs = runs_of(sent)
    assert set(runs) == set(range(ALL))
    assert runs.total() - ALL <= held
    assert sent.counts() == {"succeeded": ALL}
