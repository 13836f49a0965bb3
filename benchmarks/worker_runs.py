"""A whole worker on memory and SQLite: draining a queue, sending singly and in bulk, and how soon an idle worker starts a job."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import bare_memory, bare_sqlite, bare_wake
from benchmarks.drain import FEW, FIRST, KEPT, MANY, QUEUES, SCHEDULED, SHALLOW, leave_ended, until_all_ran
from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import marks_of
from benchmarks.options import Options
from benchmarks.processes import python
from benchmarks.report import BARE, OURS, Measure, Row, a_pair, in_turn
from benchmarks.tasks import noop, record_into, stamp, stamp_into
from taskflow import Worker, enqueue
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.worker.options import WorkerOptions

STORES = ("memory", "sqlite")
JOBS = 20_000
BULK = 100_000
CALLERS = 32
LATENCIES = 200
CONCURRENCY = 100


def drains(options: Options) -> list[Row]:
    """Drain no-op async jobs with one worker in this process, with leases, fences, retries and results, without logs."""
    bare = {"memory": _ran(partial(bare_memory.drain, JOBS, CONCURRENCY)), "sqlite": _bare_sqlite_drain}
    return [_rates(f"{store}, {JOBS:,} queued", options, partial(_drain, store), bare[store]) for store in STORES]


def enqueues(options: Options) -> list[Row]:
    """Send jobs from this process, with their arguments checked and encoded."""
    callers, bulk = f"{CALLERS} callers of delay()", f"enqueue() of {BULK:,}"
    return [
        _rates(f"memory, {callers}", options, partial(_delay_concurrently, "memory"), _ran(partial(bare_memory.send, JOBS, CALLERS))),
        _rates(f"memory, {bulk}", options, partial(_bulk, "memory"), partial(bare_memory.enqueue, BULK)),
        _rates(f"sqlite, {callers}", options, partial(_delay_concurrently, "sqlite"), _bare_sqlite_sending),
        _rates(f"sqlite, {bulk}", options, partial(_bulk, "sqlite"), _bare_sqlite_bulk),
    ]


def depths(options: Options) -> list[Row]:
    """Drain the first few thousand jobs of a long queue, and as many of a short one, which takes the bare loop's place."""
    rows: list[Row] = []
    many, scheduled, kept = options.of(MANY), options.of(SCHEDULED), options.of(KEPT)
    for store in STORES:
        of = partial(_first_of, store)
        shallow = _figure(partial(of, FEW))
        for what, part, ours in (
            (f"of {many:,} (beside: of {FEW:,})", "queued", partial(of, many)),
            (f"of {FEW:,} beside {scheduled:,} scheduled", "scheduled", partial(of, FEW, scheduled=scheduled)),
            (f"of {FEW:,} beside {kept:,} kept", "kept", partial(of, FEW, kept=kept)),
            (f"of {FEW:,} in {QUEUES:,} queues", "queues", partial(of, FEW, queues=QUEUES)),
        ):
            what = f"{store}, first {FIRST:,} {what}"
            rows += in_turn(what, options.repeats, _figure(ours), shallow, part=f"{store}, many {part}", beside=SHALLOW)
    return rows


def latencies(options: Options) -> list[Row]:
    """Measure the time from just before delay() to the job's first line on an idle worker, with a job every 20 ms."""
    repeats = options.repeats
    samples = [run_in_fastest_loop(_latency_in_process()) for _ in range(repeats)]
    bare = [run_in_fastest_loop(bare_memory.wake_up(LATENCIES)) for _ in range(repeats)]
    between = [run_in_fastest_loop(_latency_between_processes()) for _ in range(repeats)]
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


def _rates(what: str, options: Options, ours: Callable[[], Coroutine[Any, Any, float]], bare: Callable[[], float]) -> Row:
    return a_pair(what, options.repeats, _ran(ours), bare, figure="jobs/s")


def _figure(measurement: Callable[[], Coroutine[Any, Any, float]]) -> Measure:
    return lambda: {"jobs/s": _ran(measurement)()}


def _ran(measurement: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], float]:
    return lambda: run_in_fastest_loop(measurement())


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
    """Return the rate from the first job's first line to the last one's. Each job records its run.

    `drained()` would poll the queues, which costs the memory broker as much as running the jobs.
    """
    with marks_of(JOBS) as marks:
        noted = record_into(marks)
        async with _using(kind):
            await enqueue(noted.bind(number) for number in range(JOBS))
            async with Worker(options=_quiet()):
                await until_all_ran(marks, JOBS)
        marks.check()
        return marks.rate


async def _first_of(kind: str, jobs: int, *, scheduled: int = 0, kept: int = 0, queues: int = 1) -> float:
    """Return the rate between the first lines of the first and the last of the first few thousand jobs that ran."""
    stamps: list[float] = []
    noted = stamp_into(stamps)
    kinds = [noted.options(queue=f"q{number}") for number in range(queues)] if queues > 1 else [noted.options()]
    async with _using(kind):
        if kept:
            async with Worker(options=_quiet()):
                await leave_ended(default_app().broker(), kept)
        await enqueue(noted.options(after=86_400).bind() for _ in range(scheduled))
        await enqueue(kinds[number % queues].bind() for number in range(jobs))
        async with Worker(options=_quiet()):
            while len(stamps) < FIRST:  # noqa: ASYNC110 - an event that each job sets would be measured with it
                await asyncio.sleep(0.005)
            return (FIRST - 1) / (stamps[FIRST - 1] - stamps[0])


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
        await enqueue(noop.bind() for _ in range(BULK))
        return BULK / (time.perf_counter() - began)


def _bare_sqlite_drain() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL")) as connection:
        bare_sqlite.enqueue(connection, JOBS, 1_000, b"\x80")
        return run_in_fastest_loop(bare_sqlite.drain_in_tasks(connection, CONCURRENCY))


def _bare_sqlite_bulk() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL")) as connection:
        return bare_sqlite.enqueue(connection, BULK, 1_000, b"\x80")


def _bare_sqlite_sending() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL", any_thread=True)) as connection:
        return run_in_fastest_loop(bare_sqlite.send(connection, JOBS, CALLERS, b"\x80"))


def _bare_wake_ups() -> list[float]:
    with TemporaryDirectory() as folder:
        return bare_wake.wake_ups(Path(folder), LATENCIES)


async def _latency_in_process() -> list[float]:
    async with _using("memory"), Worker(options=_quiet()):
        return [await _one_latency() for _ in range(LATENCIES)]


async def _latency_between_processes() -> list[float]:
    async with _using("sqlite") as url:
        command = [python(), "-m", "taskflow", "worker", "benchmarks.tasks", "--broker", url, "--log-level", "error"]
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
