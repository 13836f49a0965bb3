"""Several worker processes on one server, thousands of jobs that sleep at one time, and payloads of all sizes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from benchmarks.drain import SETTLED_IN, fill_with_notes, until_all_ran
from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import Marks, marks_of
from benchmarks.options import Options
from benchmarks.processes import a_worker, cpu_of_family, using
from benchmarks.report import OURS, Measured, Row, in_turn
from benchmarks.stores import Store
from benchmarks.tasks import give, sleep, swallow
from taskflow import Call, enqueue
from taskflow.broker.protocol import Broker
from taskflow.model.ids import parse_id

RATE: Final = "jobs/s"
JOBS: Final = 200_000
"""Enough for a second and a half, so that the first 20 ms, in which a worker measures how fast jobs end, do not matter."""
WORKERS: Final = (1, 2, 4, 8)

NAPS: Final = 10_000
NAP: Final = 1.0
NAPPERS: Final = 1_000
"""The number of jobs that sleep at one time."""

LONG_NAPS: Final = 10_000
LONG_NAP: Final = 15.0
"""Seconds: three heartbeat intervals."""

SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Bytes of an argument. With its name, it stays below a payload's limit of one mebibyte."""

RETURNED: Final = 10_000
"""Bytes of a result."""

TOO_MUCH: Final = 50_000_000
"""The maximum bytes of all queued payloads."""


# --- several processes -------------------------------------------------------------------------------------------


def workers(store: Store, options: Options) -> list[Row]:
    """Drain with several workers. Efficiency is the rate divided by that many times one worker's rate; the cores show what is saturated."""
    rows: list[Row] = []
    jobs = options.of(JOBS)
    for processes in WORKERS:
        what = f"{jobs:,} queued, {processes} worker process{'es' if processes > 1 else ''}"
        rows += in_turn(what, options.repeats, partial(_by_processes, store, jobs, processes), part=f"{processes}")
    return [*rows, *efficiencies(rows)]


def efficiencies(rows: Sequence[Row]) -> list[Row]:
    """Return the efficiency for each number of workers. The rows are ordered by that number, starting with 1."""
    rates = [row for row in rows if row.figure == RATE]
    one = rates[0].ours
    return [
        Row("efficiency", "efficiency", f"{row.part} processes", {OURS: [rate / int(row.part) / one for rate in row.values[OURS]]})
        for row in rates
    ]


def _by_processes(store: Store, jobs: int, processes: int) -> Measured:
    return run_in_fastest_loop(_drained_by(store, jobs, processes))


async def _drained_by(store: Store, jobs: int, processes: int) -> Measured:
    """Drain with several workers. Return the rate, and the CPU time per job of all workers and of the server."""
    with store.start() as server, marks_of(jobs) as marks:
        async with using(server.url) as broker, AsyncExitStack() as working:
            pids = [await working.enter_async_context(a_worker(server.url, marks=marks)) for _ in range(processes)]
            await broker.admin.pause("default")
            await fill_with_notes(jobs)
            server.rest()
            await asyncio.sleep(SETTLED_IN)
            before, cpu = server.cost().cpu, sum(map(cpu_of_family, pids))
            await broker.admin.resume("default")
            await until_all_ran(marks, jobs)
            spent, server_spent = sum(map(cpu_of_family, pids)) - cpu, server.cost().cpu - before
        marks.check()
    return {
        **_costs(marks.rate, jobs, spent, server_spent),
        "workers, cores": spent / jobs * marks.rate,
        "server, cores": server_spent / jobs * marks.rate,
    }


def _costs(rate: float, jobs: int, spent: float, server_spent: float) -> dict[str, float]:
    return {RATE: rate, "worker CPU µs/job": 1e6 * spent / jobs, "server CPU µs/job": 1e6 * server_spent / jobs}


# --- jobs that sleep -----------------------------------------------------------------------------------------------


def sleeping(store: Store, options: Options) -> list[Row]:
    """Measure how much of the ideal rate is reached, and whether leases are lost if all jobs sleep at one time."""
    naps, long_naps = options.of(NAPS), options.of(LONG_NAPS)
    a_second, at_once = partial(_naps, store, naps, NAPPERS, NAP), partial(_naps, store, long_naps, long_naps, LONG_NAP)
    return [
        *in_turn(f"{naps:,} sleep a second, {NAPPERS:,} at a time", options.repeats, a_second, part="a second"),
        *in_turn(f"{long_naps:,} sleep {LONG_NAP:.0f} s, all at once", 1, at_once, part="all at once"),
    ]


def _naps(store: Store, jobs: int, concurrency: int, seconds: float) -> Measured:
    return run_in_fastest_loop(_slept(store, jobs, concurrency, seconds))


async def _slept(store: Store, jobs: int, concurrency: int, seconds: float) -> Measured:
    """Run jobs that sleep. Each must run once: a job whose lease was lost would run again. Also measure the worker's longest silence."""
    with store.start() as server, marks_of(jobs) as marks:
        async with using(server.url) as broker, a_worker(server.url, concurrency, marks=marks):
            await broker.admin.pause("default")
            handles = await enqueue(sleep.bind(number, seconds) for number in range(jobs))
            await broker.admin.resume("default")
            longest = await _watched(broker, marks, jobs, seconds)
            epochs = [record.epoch for record in await broker.read([parse_id(handle.id) for handle in handles[:1_000]]) if record]
        marks.check()
    stamps = marks.stamps()
    ideal = jobs / concurrency * seconds
    return {
        "of the ideal rate": ideal / (max(stamps) - min(stamps) + seconds),
        "longest without a beat, s": longest,
        "leases lost": float(sum(epoch > 1 for epoch in epochs)),
    }


async def _watched(broker: Broker, marks: Marks, jobs: int, seconds: float) -> float:
    """Wait until the last job has slept. Return the longest time that a session was seen without a heartbeat."""
    longest, left = 0.0, seconds + 1.0
    while left > 0:
        longest = max([longest, *(session.seconds_since_beat for session in await broker.admin.workers())])
        await asyncio.sleep(0.25)
        if marks.ran >= jobs:
            left -= 0.25
    return longest


# --- payloads ------------------------------------------------------------------------------------------------------


def payloads(store: Store, options: Options) -> list[Row]:
    rows: list[Row] = []
    for size in SIZES:
        jobs = options.of(min(10_000, TOO_MUCH // size))
        rows += in_turn(f"{jobs:,} queued with {size:,} bytes", options.repeats, partial(_carried, store, jobs, size), part=f"{size}")
    jobs = options.of(TOO_MUCH // RETURNED)
    what = f"{jobs:,} queued that return {RETURNED:,} bytes, beside as many with such an argument"
    returned, carried = partial(_returned, store, jobs, RETURNED), partial(_carried, store, jobs, RETURNED)
    return rows + in_turn(what, options.repeats, returned, carried, part="results", beside="as an argument")


def _carried(store: Store, jobs: int, size: int) -> Measured:
    data = random.Random(size).randbytes(size)  # PostgreSQL would compress zeros to nothing
    return run_in_fastest_loop(_drained(store, [swallow.bind(number, data) for number in range(jobs)]))


def _returned(store: Store, jobs: int, size: int) -> Measured:
    return run_in_fastest_loop(_drained(store, [give.bind(number, size) for number in range(jobs)]))


async def _drained(store: Store, calls: Sequence[Call[Any]]) -> Measured:
    jobs = len(calls)
    with store.start() as server, marks_of(jobs) as marks:
        async with using(server.url) as broker, a_worker(server.url, marks=marks) as worker:
            await broker.admin.pause("default")
            await enqueue(calls)
            server.rest()
            cpu, before = cpu_of_family(worker), server.cost().cpu
            await broker.admin.resume("default")
            await until_all_ran(marks, jobs)
            spent, server_spent = cpu_of_family(worker) - cpu, server.cost().cpu - before
        marks.check()
    return _costs(marks.rate, jobs, spent, server_spent)
