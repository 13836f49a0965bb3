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
"""Seconds, on a machine with much else to do: less than an idle worker's next look, which is up to seven seconds away."""


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
    """Each is sent when the one before has run."""
    done = len(tasks.ledger())
    for each in range(1, number + 1):
        tasks.send("note.bind(__import__('time').time())")
        until(lambda each=each: len(tasks.ledger()) >= done + each)  # type: ignore[misc]


@on_each_broker
def test_jobs_start_at_once_though_an_idle_worker_was_killed(tasks: Shell) -> None:
    workers = idle_workers(tasks, 2)
    workers.pop().process.kill()
    before = len(tasks.ledger())
    send_one_by_one(tasks, 3)

    # PostgreSQL cannot see that a process is gone: the first job may wait until its nudge is passed on.
    assert sorted(map(float, tasks.ledger()[before:]))[1] < SOON
    end(workers)


@on_each_broker
def test_jobs_start_at_once_though_an_idle_worker_is_stopped(tasks: Shell) -> None:
    """The first job may wait for the next one: whoever sends that passes its nudge on."""
    workers = idle_workers(tasks, 2)
    stopped = workers[0]
    tasks.suspend(stopped)
    before = len(tasks.ledger())
    try:
        tasks.send("note.bind(__import__('time').time())")
        send_one_by_one(tasks, 2)
        until(lambda: len(tasks.ledger()) == before + 3)
        waited = sorted(map(float, tasks.ledger()[before:]))
        assert waited[1] < SOON
    finally:
        stopped.signal(signal.SIGCONT)
    end(workers)


def end(workers: list[Running]) -> None:
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        ended_clearly(worker, [0])
