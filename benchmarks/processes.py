"""Worker processes, and what they cost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.tasks import stamp
from taskflow.app.current import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect

ROOT = Path(__file__).parents[1]


@asynccontextmanager
async def using(url: str) -> AsyncIterator[Broker]:
    """What is sent in the block goes there."""
    broker = connect(url)
    try:
        with default_app().using(broker):
            yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def a_worker(url: str, concurrency: int = 100) -> AsyncIterator[int]:
    """`taskflow worker` with its logs off, its pid, once it has run a job."""
    flags = ["--concurrency", str(concurrency), "--log-level", "warning", "--grace", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "taskflow", "worker", "benchmarks.tasks", "--broker", url, *flags, cwd=ROOT
    )
    try:
        await (await stamp.options(priority=100).delay()).result(60)  # before all that may be queued
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


def cpu_of(pid: int) -> float:
    """Seconds, of all its threads, to the nanosecond: Linux alone tells them so."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def memory_of(pid: int) -> float:
    """MB of resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [told] = [line for line in lines if line.startswith("VmRSS:")]
    return int(told.split()[1]) / 1024
