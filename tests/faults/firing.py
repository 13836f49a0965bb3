"""A schedule that fires each second, while its workers are killed in turn."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from taskflow.broker.url import connect
from taskflow.model.schedule import ScheduleRecord
from tests.cli.processes import LEDGER, Shell, until

TASKS = (
    LEDGER
    + """
from taskflow import Every, JobContext, job

@job(name="tick", schedule=Every(1))
async def tick(ctx: JobContext) -> None:
    write(f"{ctx.scheduled_for.timestamp():.0f}")
"""
)


def each_second_fires_once(shell: Shell, seconds: float, *, every: float) -> None:
    """Run three workers, one of which is killed and replaced every `every` seconds. Every second of the time fires, and none twice."""
    shell.write("tasks.py", TASKS)
    workers = [shell.worker("--ttl", "2") for _ in range(3)]
    until(lambda: bool(shell.ledger()))
    first, ends_at, number = int(shell.ledger()[0]), time.monotonic() + seconds, 0
    while time.monotonic() < ends_at:
        time.sleep(every)
        workers[number % 3].signal(signal.SIGKILL)
        workers[number % 3].end()
        workers[number % 3] = shell.worker("--ttl", "2")
        number += 1
    last = int(time.time())
    until(lambda: {str(second) for second in range(first, last + 1)} <= set(shell.ledger()))
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0, worker.said
    fired = sorted(set(map(int, shell.ledger())))
    assert fired == list(range(first, fired[-1] + 1))
    [record] = schedules(shell)
    assert (record.fired, record.missed, record.skipped) == (len(fired), 0, 0)


def schedules(shell: Shell) -> list[ScheduleRecord]:
    """Return the store's records of its schedules, as read from this process."""
    url = re.sub("^sqlite:///(?!/)", f"sqlite:///{shell.folder}/", shell.environment["TASKFLOW_BROKER"])

    async def look() -> list[ScheduleRecord]:
        broker = connect(url)
        try:
            return await broker.admin.schedules()
        finally:
            await broker.close()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, look()).result()
