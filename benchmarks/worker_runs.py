"""A whole worker: draining a queue, sending one by one and in bulk, and how soon an idle worker starts a job."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import bare_memory, bare_sqlite, bare_wake
from benchmarks.report import BARE, OURS, Row, a_pair
from benchmarks.tasks import noop, stamp
from taskflow import Worker, enqueue
from taskflow.app.current import default_app
from taskflow.broker.url import connect
from taskflow.worker.options import WorkerOptions

JOBS = 20_000
CALLERS = 32
LATENCIES = 200
CONCURRENCY = 100


def drains(repeats: int) -> list[Row]:
    """No-op async jobs, one worker in this process, leases, fences, retries and results on, logs off."""
    return [
        a_pair(f"memory, {JOBS:,} queued", repeats, _ran(partial(_drain, "memory")), _ran(partial(bare_memory.drain, JOBS, CONCURRENCY))),
        a_pair(f"sqlite, {JOBS:,} queued", repeats, _ran(partial(_drain, "sqlite")), _bare_sqlite_drain),
    ]


def enqueues(repeats: int) -> list[Row]:
    """With arguments checked and encoded, from this process."""
    callers, bulk = f"{CALLERS} callers of delay()", f"enqueue() of {JOBS:,}"
    return [
        a_pair(f"memory, {callers}", repeats, _ran(partial(_delay_concurrently, "memory")), _ran(partial(bare_memory.send, JOBS, CALLERS))),
        a_pair(f"memory, {bulk}", repeats, _ran(partial(_bulk, "memory")), partial(bare_memory.enqueue, JOBS)),
        a_pair(f"sqlite, {callers}", repeats, _ran(partial(_delay_concurrently, "sqlite")), _bare_sqlite_sending),
        a_pair(f"sqlite, {bulk}", repeats, _ran(partial(_bulk, "sqlite")), _bare_sqlite_bulk),
    ]


def latencies(repeats: int) -> list[Row]:
    """From just before delay() to the job's first line, the worker idle, one every 20 ms."""
    samples = [asyncio.run(_latency_in_process()) for _ in range(repeats)]
    bare = [asyncio.run(bare_memory.wake_up(LATENCIES)) for _ in range(repeats)]
    between = [asyncio.run(_latency_between_processes()) for _ in range(repeats)]
    bare_between = [_bare_wake_ups() for _ in range(repeats)]
    return [
        _percentile_row("memory, one process, p50", samples, 0.5, bare),
        _percentile_row("memory, one process, p99", samples, 0.99, bare),
        _percentile_row("sqlite, two processes, p50", between, 0.5, bare_between),
        _percentile_row("sqlite, two processes, p99", between, 0.99, bare_between),
    ]


def _percentile_row(what: str, samples: list[list[float]], share: float, bare: list[list[float]]) -> Row:
    mine = [1_000 * _percentile(sample, share) for sample in samples]
    theirs = [1_000 * _percentile(sample, share) for sample in bare]
    return Row(what, what, "ms", {OURS: mine, BARE: theirs})


def _percentile(sample: list[float], share: float) -> float:
    return sorted(sample)[min(len(sample) - 1, int(share * len(sample)))]


def _ran(measurement: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], float]:
    return lambda: asyncio.run(measurement())


@asynccontextmanager
async def _using(kind: str) -> AsyncIterator[str]:
    with TemporaryDirectory() as folder:
        url = "memory://" if kind == "memory" else f"sqlite:///{Path(folder, 'queue.db')}"
        broker = connect(url)
        with default_app().using(broker):
            yield url
        await broker.close()


def _quiet() -> WorkerOptions:
    return WorkerOptions(concurrency=CONCURRENCY, subscribers=())


async def _drain(kind: str) -> float:
    async with _using(kind):
        await enqueue(noop.bind() for _ in range(JOBS))
        began = time.perf_counter()
        async with Worker(options=_quiet()) as worker:
            await worker.drained()
            rate = JOBS / (time.perf_counter() - began)
    if worker.tally.runs != JOBS:
        raise AssertionError(f"{worker.tally.runs} runs of {JOBS} jobs")
    return rate


async def _delay_concurrently(kind: str) -> float:
    async def caller() -> None:
        for _ in range(JOBS // CALLERS):
            await noop.delay()

    async with _using(kind):
        await noop.delay()
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return JOBS / (time.perf_counter() - began)


async def _bulk(kind: str) -> float:
    async with _using(kind):
        await noop.delay()
        began = time.perf_counter()
        await enqueue(noop.bind() for _ in range(JOBS))
        return JOBS / (time.perf_counter() - began)


def _bare_sqlite_drain() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL")) as connection:
        bare_sqlite.enqueue(connection, JOBS, 1_000, b"\x80")
        return asyncio.run(bare_sqlite.drain_in_tasks(connection, CONCURRENCY))


def _bare_sqlite_bulk() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL")) as connection:
        return bare_sqlite.enqueue(connection, JOBS, 1_000, b"\x80")


def _bare_sqlite_sending() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL", any_thread=True)) as connection:
        return asyncio.run(bare_sqlite.send(connection, JOBS, CALLERS, b"\x80"))


def _bare_wake_ups() -> list[float]:
    with TemporaryDirectory() as folder:
        return bare_wake.wake_ups(Path(folder), LATENCIES)


async def _latency_in_process() -> list[float]:
    async with _using("memory"), Worker(options=_quiet()):
        return [await _one_latency() for _ in range(LATENCIES)]


async def _latency_between_processes() -> list[float]:
    async with _using("sqlite") as url:
        command = [sys.executable, "-m", "taskflow", "worker", "benchmarks.tasks", "--broker", url, "--log-level", "error"]
        worker = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PYTHONPATH": os.getcwd()})
        try:
            await _one_latency()  # the worker is up
            return [await _one_latency() for _ in range(LATENCIES)]
        finally:
            worker.terminate()
            await worker.wait()


async def _one_latency() -> float:
    await asyncio.sleep(0.02)
    began = time.monotonic()
    started = await (await stamp.delay()).result(60)
    return started - began
