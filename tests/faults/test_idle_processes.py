"""Idle worker processes that are killed or stopped: jobs start at once all the same."""

from __future__ import annotations

import signal

import pytest

from tests.cli.processes import LEDGER, Running, Shell, ended_clearly, on_each_broker, until

pytestmark = pytest.mark.unmeasured

TASKS = (
    LEDGER
    + """
import time
from taskflow import job

@job
async def note(sent_at: float) -> None:
    write(f"{time.time() - sent_at:.3f}")
"""
)

SOON = 3.0
"""Seconds, on a busy machine: less than an idle worker's next poll, which is up to seven seconds away."""


@pytest.fixture
def tasks(shell: Shell) -> Shell:
    shell.write("tasks.py", TASKS)
    return shell


def idle_workers(tasks: Shell, number: int) -> list[Running]:
    workers = [tasks.worker() for _ in range(number)]
    for worker in workers:
        worker.wait_for("jobs: tasks.note")
    send_one_by_one(tasks, 2 * number)
    return workers


def send_one_by_one(tasks: Shell, number: int) -> None:
    """Send each job when the one before has run."""
    done = len(tasks.ledger())
    for each in range(1, number + 1):
        tasks.send("note.bind(__import__('time').time())")
        until(lambda each=each: len(tasks.ledger()) >= done + each)  # type: ignore[misc]


@on_each_broker
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "stopped"])
def test_jobs_start_at_once_though_an_idle_worker_was_killed_or_is_stopped(tasks: Shell, is_killed: bool) -> None:
    """PostgreSQL does not notice that a process is gone, and no store that one is stopped: the first job may wait until the sender of the
    next one passes its nudge on."""
    workers = idle_workers(tasks, 2)
    lost = workers.pop()
    if is_killed:
        lost.process.kill()
    else:
        tasks.suspend(lost)
        workers.append(lost)
    before = len(tasks.ledger())
    try:
        tasks.send("note.bind(__import__('time').time())")
        send_one_by_one(tasks, 2)
        until(lambda: len(tasks.ledger()) == before + 3)
        assert sorted(map(float, tasks.ledger()[before:]))[1] < SOON
    finally:
        lost.signal(signal.SIGCONT)
    end(workers)


def end(workers: list[Running]) -> None:
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        ended_clearly(worker, [0])
