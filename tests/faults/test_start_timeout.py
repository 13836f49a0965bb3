"""A worker, or a fleet of them, that starts while its store is unavailable."""

from __future__ import annotations

import signal
import time

import pytest

from tests.cli.processes import Shell, ended_clearly
from tests.support.outages import Outage, RedisOutage, SqliteOutage

pytestmark = pytest.mark.unmeasured

TASKS = """
from taskflow import job

@job
async def greet(name: str) -> None:
    print(f"hello {name}\\n", end="", flush=True)
"""

SAYS_SO = r"WARNING (?:\[\d+\] )?the broker does not answer yet; trying for at most [\d.]+ s: "


@pytest.fixture
def tasks(shell: Shell, outage: Outage) -> Shell:
    shell.write("tasks.py", TASKS)
    shell.environment["TASKFLOW_BROKER"] = outage.url
    shell.send("greet.bind('you')")
    return shell


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["alone", "fleet"])
def test_a_worker_waits_for_its_store_and_then_works(tasks: Shell, outage: Outage, more: tuple[str, ...]) -> None:
    outage.go_away()
    worker = tasks.taskflow("worker", "tasks", "--start-timeout", "50", *more)
    worker.wait_for(SAYS_SO)
    outage.come_back()
    worker.wait_for("hello you")
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [0])


@pytest.mark.parametrize("outage", [RedisOutage], indirect=True, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("timeout", "more"), [("3", ()), ("3", ("--processes", "2")), ("0", ())], ids=["alone", "fleet", "no timeout"])
def test_a_worker_whose_store_stays_away_ends_with_3_after_the_timeout(
    tasks: Shell, outage: Outage, timeout: str, more: tuple[str, ...]
) -> None:
    outage.go_away()
    worker = tasks.taskflow("worker", "tasks", "--start-timeout", timeout, *more)
    if timeout != "0":
        worker.wait_for(SAYS_SO)
    began = time.monotonic()
    ended_clearly(worker, [3])
    assert "taskflow: Redis" in worker.said
    assert time.monotonic() - began > 1.0 if timeout != "0" else "does not answer yet" not in worker.said


@pytest.mark.parametrize("outage", [SqliteOutage], indirect=True, ids=lambda kind: kind.name)
def test_a_signal_ends_the_waiting(tasks: Shell, outage: Outage) -> None:
    outage.go_away()
    worker = tasks.taskflow("worker", "tasks")
    worker.wait_for(SAYS_SO)
    worker.signal(signal.SIGTERM)
    ended_clearly(worker, [128 + signal.SIGTERM])
    outage.come_back()
