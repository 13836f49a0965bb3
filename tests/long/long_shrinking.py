"""A million jobs on SQLite, and ten minutes later the file is as small as a new one. Others enqueue meanwhile, and a worker is killed."""

# ruff: noqa: ASYNC110 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from taskflow import job
from taskflow.broker.sqlite import SqliteBroker

JOBS: Final = 1_000_000
MOST_SECONDS: Final = 600.0


@job(name="beside", keep_result=0)
async def beside() -> None: ...


WORKER: Final = """
    import asyncio, sys
    from taskflow import Worker, configure, enqueue, job

    configure(broker="sqlite:///" + sys.argv[1])

    @job(keep_result=0)
    async def work(number: int) -> None: ...

    @job(name="beside", keep_result=0)
    async def beside() -> None: ...

    async def main() -> None:
        for start in range(0, int(sys.argv[2]), 1_000):
            await enqueue(work.bind(number) for number in range(start, start + 1_000))
        print("filled", flush=True)
        async with Worker(concurrency=100):
            await asyncio.Event().wait()

    asyncio.run(main())
"""


@contextlib.contextmanager
def worker(path: Path, jobs: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER), str(path), str(jobs)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
        yield process
    finally:
        process.kill()
        process.communicate()


class Neighbour:
    """Another process that enqueues, one job every 20 ms."""

    def __init__(self, path: Path) -> None:
        self._broker = SqliteBroker(path)
        self._latencies = list[float]()

    async def enqueue(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            await self._broker.enqueue([beside.bind().envelope])
            self._latencies.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)

    def take(self) -> str:
        found, self._latencies = sorted(self._latencies), []
        return f"a neighbour's enqueue p50 {found[len(found) // 2] * 1e3:.1f}, p99 {found[len(found) * 99 // 100] * 1e3:.1f} ms"

    async def close(self) -> None:
        await self._broker.close()


async def test_a_million_dropped_jobs(tmp_path: Path) -> None:
    fresh, path = tmp_path / "fresh.db", tmp_path / "queue.db"
    with worker(fresh):
        pass
    broker = SqliteBroker(fresh)
    await broker.enqueue([beside.bind().envelope])
    await broker.close()
    with worker(path, JOBS) as first:
        neighbour, began = Neighbour(path), time.monotonic()
        largest = path.stat().st_size
        while path.stat().st_size > largest / 2:
            await neighbour.enqueue(5)
            largest = max(largest, path.stat().st_size)
            _tell(path, began, neighbour)
        first.kill()
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    await neighbour.close()
    last_job_at = time.monotonic()
    with worker(path):
        while path.stat().st_size > 1.2 * fresh.stat().st_size and time.monotonic() - last_job_at < MOST_SECONDS:
            await asyncio.sleep(5)
    print(f"{time.monotonic() - began:.0f} s: {path.stat().st_size:,} bytes, a new file {fresh.stat().st_size:,}")
    assert path.stat().st_size <= 1.2 * fresh.stat().st_size


def _tell(path: Path, began: float, neighbour: Neighbour) -> None:
    with closing(sqlite3.connect(path)) as reader:
        [(free,)], [(jobs,)] = reader.execute("PRAGMA freelist_count"), reader.execute("SELECT count(*) FROM taskflow_jobs")
    size = f"{path.stat().st_size / 2**20:6.1f} MiB, {free / 256:6.1f} of them free, {jobs:,} rows"
    print(f"{time.monotonic() - began:4.0f} s: {size}; {neighbour.take()}", flush=True)
