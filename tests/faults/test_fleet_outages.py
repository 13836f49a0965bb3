"""The broker is unavailable for a while under a supervisor, which replaces no worker for that, and all jobs run.

`test_outages` has each broker; here each test has another one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.cli.processes import LEDGER, Running, Shell, ended_clearly, until
from tests.cli.supervised import is_alive, none_is_left, pids, workers
from tests.faults.outage import FIRST_TRIES, SLOWEST
from tests.support.outages import Outage, PostgresOutage, SqliteOutage

pytestmark = pytest.mark.unmeasured

TASKS = (
    LEDGER
    + """
import asyncio, os
from pathlib import Path
from taskflow import job

@job
async def note(n: int) -> None:
    await asyncio.sleep(0.1 + n % 10 / 20)  # at each moment some end, in either worker
    print(f"noted by {os.getpid()}\\n", end="", flush=True)
    write(str(n))

@job
async def wait(n: int) -> None:
    print(f"{n} begun by {os.getpid()}\\n", end="", flush=True)
    while not Path("release").exists():
        await asyncio.sleep(0.01)
    write(str(n))
"""
)

MANY: Final = 300
LONG: Final = range(MANY, MANY + 6)
ALL: Final = Counter(map(str, range(LONG.stop)))

IDLING: Final = 0.25
"""The maximum share of a core for each process: a loop that polls without a pause uses a whole core."""


@pytest.fixture
def tasks(shell: Shell, outage: Outage) -> Shell:
    shell.write("tasks.py", TASKS)
    shell.environment["TASKFLOW_BROKER"] = outage.url
    return shell


def two_at_work(tasks: Shell, *arguments: str) -> Running:
    """Start workers, each in the midst of many short jobs; and a few long ones."""
    tasks.send(f"*[wait.bind(n) for n in range({LONG.start}, {LONG.stop})]", f"*[note.bind(n) for n in range({MANY})]")
    supervised = workers(tasks, 2, "--concurrency", "20", "--log-level", "debug", *arguments)
    supervised.wait_for("begun by", times=len(LONG))
    for pid in pids(supervised):
        supervised.wait_for(f"noted by {pid}")
    assert len(tasks.ledger()) < MANY
    return supervised


@contextmanager
def away(outage: Outage, supervised: Running) -> Iterator[None]:
    """During the outage none of the processes spins: neither by its attempts, nor by computing."""
    three = [supervised.process.pid, *pids(supervised)]
    tried, before, began_at = tries(supervised), list(map(computed, three)), time.monotonic()
    outage.go_away()
    try:
        yield
        until(lambda: tries(supervised) != tried, supervised)  # an attempt on a locked file fails after seconds
        after, lasted = list(map(computed, three)), time.monotonic() - began_at
    finally:
        outage.come_back()
    tried = tries(supervised) - tried
    assert max(tried.values()) <= 2 * (FIRST_TRIES + lasted / SLOWEST), tried
    busy = [(end - start) / lasted for start, end in zip(before, after, strict=True)]
    assert max(busy) < IDLING, busy


def tries(supervised: Running) -> Counter[str]:
    """Return both workers' attempts that did not reach the broker, by operation. The first is a warning, the others are debug messages."""
    first = re.findall(r"WARNING (?:\[\d+\] )?(.+) failed, trying again", supervised.said)
    return Counter([*first, *re.findall(r"BrokerCallFailed\(operation='([^']+)'", supervised.said)])


def computed(pid: int) -> float:
    """Return the process's CPU seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def nobody_was_replaced(supervised: Running) -> None:
    assert len(pids(supervised)) == 2, supervised.said
    assert all(map(is_alive, pids(supervised))), supervised.said
    assert not re.search(r"worker \d+ has ended", supervised.said), supervised.said


def all_end(tasks: Shell, supervised: Running) -> None:
    """Each job ends once, and then the workers do too."""
    tasks.write("release", "")
    until(lambda: len(tasks.ledger()) >= ALL.total(), supervised)
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0])
    assert Counter(tasks.ledger()) == ALL
    assert tasks.counts() == {"succeeded": ALL.total()}
    assert "that was ignored" not in supervised.said
    none_is_left(supervised)


@pytest.mark.parametrize("outage", [PostgresOutage], indirect=True, ids=lambda kind: kind.name)
def test_after_a_longer_outage_ended_runs_count_and_the_others_run_again(tasks: Shell, outage: Outage) -> None:
    """Each worker gives its session up and goes on with another one, in the same process."""
    supervised = two_at_work(tasks, "--ttl", "6")
    with away(outage, supervised):
        supervised.wait_for("the session of .* has ended: .*; starting a new one", times=2)
    supervised.wait_for("working as", times=4)
    supervised.wait_for("begun by", times=2 * len(LONG))
    nobody_was_replaced(supervised)
    all_end(tasks, supervised)


@pytest.mark.parametrize("outage", [SqliteOutage], indirect=True, ids=lambda kind: kind.name)
def test_a_worker_that_dies_meanwhile_is_replaced_when_the_broker_is_back(tasks: Shell, outage: Outage) -> None:
    """The replacement could not start during the outage and is retried; the other worker goes on, and the broker learns of the death in the
    end."""
    tasks.send(f"wait.bind({LONG[0]})")
    supervised = workers(tasks, 2, "--ttl", "3600", "--start-timeout", "3")
    supervised.wait_for("begun by")
    [victim] = {int(pid) for pid in re.findall(r"begun by (\d+)", supervised.said)}
    [other] = set(pids(supervised)) - {victim}
    outage.go_away()
    os.kill(victim, signal.SIGKILL)
    supervised.wait_for(r"worker \d+ has ended: exit code 3; another worker starts in 1 s")
    outage.come_back()
    supervised.wait_for("begun by", times=2)
    supervised.wait_for("working as", times=3)
    assert is_alive(other)
    tasks.write("release", "")
    until(lambda: len(tasks.ledger()) == 1, supervised)
    supervised.signal(signal.SIGTERM)
    ended_clearly(supervised, [0])
    [job] = json.loads(tasks.run("-m", "taskflow", "jobs", "--json"))["jobs"]
    assert (job["status"], job["epoch"]) == ("succeeded", 2)
    assert [error["message"].rpartition(": ")[2] for error in job["errors"]] == ["SIGKILL"]
