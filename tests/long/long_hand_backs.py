"""One long job during eleven deploys, and during eleven outages of its store, with the default waits: it does not fail."""

from __future__ import annotations

import asyncio
import json
import signal
from functools import partial
from typing import Final

import pytest

from tests.cli.processes import LEDGER, Shell, ended_clearly, on_each_broker, until
from tests.faults import outage
from tests.support import waiting
from tests.support.outages import Outage, outages

TIMES: Final = 11
"""Nine hand-backs are free; the tenth and the eleventh wait 5 and 30 s."""

TASKS = (
    LEDGER
    + """
import asyncio
from pathlib import Path
from taskflow import job

@job(max_attempts=1)
async def long() -> None:
    write("begun")
    while not Path("enough").exists():
        await asyncio.sleep(0.05)
"""
)


@on_each_broker
def test_eleven_deploys_during_one_job(shell: Shell) -> None:
    """Each worker is stopped while it runs the job. The last worker warns about it, and lets it end."""
    shell.write("tasks.py", TASKS)
    shell.send("long.bind()")
    for number in range(1, TIMES + 1):
        worker = shell.worker("--grace", "0.1")
        until(partial(_has_begun, shell, number), worker)
        worker.signal(signal.SIGTERM)
        ended_clearly(worker, [0, 124])
    [record] = json.loads(shell.run("-m", "taskflow", "jobs", "--json"))["jobs"]
    assert (record["status"], record["waiting_for"]) == ("scheduled", f"a back-off: handed back {TIMES} times without an outcome")

    worker = shell.worker()
    worker.wait_for(f"was handed back {TIMES} times without an outcome")
    shell.write("enough", "")
    until(lambda: shell.counts() == {"succeeded": 1}, worker)


@pytest.mark.parametrize("kind", outages(), ids=lambda kind: kind.name)
async def test_eleven_outages_during_one_job(kind: type[Outage]) -> None:
    """Each is longer than the worker's ttl, so that it gives the run up."""
    with kind() as away:
        bench = outage.Bench(away)
        async with bench.work(ttl=1.5):
            await bench.send([0], float("inf"))
            for number in range(TIMES):
                await waiting.until(partial(_runs_again, bench, number))
                async with bench.away():
                    await asyncio.sleep(4)
            await waiting.until(partial(_runs_again, bench, TIMES))
            bench.release.set()
            await waiting.until(lambda: bench.ended[0] == 1)
            print(f"{kind.name}: {bench.begun[0]} runs")


def _has_begun(shell: Shell, times: int) -> bool:
    return shell.ledger().count("begun") == times


def _runs_again(bench: outage.Bench, runs_before: int) -> bool:
    return bench.begun[0] > runs_before
