"""A worker process drains what is queued on Redis, beside the bare loop: jobs a second, and microseconds of CPU a job."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from benchmarks import bare_redis
from benchmarks.loops import run_in_fastest_loop
from benchmarks.processes import ROOT, a_worker, cpu_of, using
from benchmarks.report import Row, in_turn
from benchmarks.servers import RedisServer, ServerLoad
from benchmarks.tasks import noop, stamp
from taskflow import JobHandle, enqueue
from taskflow.broker.protocol import Broker

JOBS: Final = 20_000
CONCURRENCIES: Final = (100, 32)
FIRST: Final = 5_000
FEW: Final = 10_000
MANY: Final = 500_000
SCHEDULED: Final = 1_000_000
QUEUES: Final = 1_000

LOOK_EVERY: Final = 0.02
"""Seconds between two looks at whether all is done, which cost the server next to nothing."""


def drains(repeats: int) -> list[Row]:
    """No-op async jobs, one `taskflow worker`, leases, fences, retries and results on."""
    rows: list[Row] = []
    for concurrency in CONCURRENCIES:
        ours, bare = partial(_drain, JOBS, concurrency), partial(_drain_bare, JOBS, concurrency)
        rows += in_turn(f"{JOBS:,} queued, {concurrency} at a time", repeats, ours, bare)
    return rows


def depths(repeats: int) -> list[Row]:
    """The first few thousand of many queued, beside as many of few."""
    few = partial(_first_of, FEW)
    return [
        *in_turn(f"first {FIRST:,} of {MANY:,} (beside: of {FEW:,})", repeats, partial(_first_of, MANY), few),
        *in_turn(f"of {FEW:,} beside {SCHEDULED:,} scheduled", repeats, partial(_first_of, FEW, scheduled=SCHEDULED), few),
        *in_turn(f"of {FEW:,} in {QUEUES:,} queues", repeats, partial(_first_of, FEW, queues=QUEUES), few),
    ]


# --- ours ------------------------------------------------------------------------------------------------


def _drain(jobs: int, concurrency: int) -> Mapping[str, float]:
    return run_in_fastest_loop(_drain_paused(jobs, concurrency))


async def _drain_paused(jobs: int, concurrency: int) -> Mapping[str, float]:
    """The queue is paused until all is in it; its first job and its last tell when they were run."""
    with RedisServer() as server:
        async with using(server.url) as broker, a_worker(server.url, concurrency) as worker:
            await broker.console.pause("default")
            [first] = await enqueue([stamp.bind()])
            await enqueue(noop.bind() for _ in range(jobs - 2))
            [last] = await enqueue([stamp.bind()])
            await asyncio.sleep(0.2)
            load, cpu = server.load(), cpu_of(worker)
            took = await _took(broker, first, last)
            spent, done = cpu_of(worker) - cpu, server.load().since(load)
    return {
        "jobs/s": jobs / took,
        "worker CPU µs/job": 1e6 * spent / jobs,
        "server CPU µs/job": 1e6 * done.cpu / jobs,
        "scripts/job": _scripts(done) / jobs,
    }


async def _took(broker: Broker, first: JobHandle[float], last: JobHandle[float]) -> float:
    """Seconds from the first line of the one to the first line of the other."""
    await broker.console.resume("default")
    await _until_all_ended([last])
    return await last.result(0) - await first.result(0)


async def _until_all_ended(handles: Sequence[JobHandle[float]]) -> None:
    """By looking: a server that must tell of an end does more for each job."""
    is_over = False
    while not is_over:
        await asyncio.sleep(LOOK_EVERY)
        is_over = all(status and status.is_ended for status in await asyncio.gather(*(handle.status() for handle in handles)))


def _scripts(done: ServerLoad) -> int:
    return done.calls.get("evalsha", 0) + done.calls.get("eval", 0)


def _first_of(jobs: int, *, scheduled: int = 0, queues: int = 1) -> Mapping[str, float]:
    return run_in_fastest_loop(_first_of_paused(jobs, scheduled, queues))


async def _first_of_paused(jobs: int, scheduled: int, queues: int) -> Mapping[str, float]:
    """With many queues there is no order among them: the worker waits for them before they are filled, and runs all."""
    with RedisServer() as server:
        async with using(server.url) as broker:
            later = noop.options(after=86_400)
            await enqueue(later.bind() for _ in range(scheduled))
            if queues > 1:
                return {"jobs/s": await _rate_over_queues(server, broker, jobs, queues)}
            async with a_worker(server.url):
                await broker.console.pause("default")
                [first] = await enqueue([stamp.bind()])
                await enqueue(noop.bind() for _ in range(FIRST - 2))
                [last] = await enqueue([stamp.bind()])
                await enqueue(noop.bind() for _ in range(jobs - FIRST))
                await asyncio.sleep(0.2)
                return {"jobs/s": FIRST / await _took(broker, first, last)}


async def _rate_over_queues(server: RedisServer, broker: Broker, jobs: int, queues: int) -> float:
    """From the first job's first line to the last one's, whichever they are."""
    kinds = [stamp.options(queue=f"q{number}") for number in range(queues)]
    handles = await enqueue(kinds[i % queues].bind() for i in range(jobs))
    async with a_worker(server.url):
        await _until_all_ended(handles)
        stamps = sorted(await asyncio.gather(*(handle.result(0) for handle in handles)))
    return FIRST / (stamps[FIRST - 1] - stamps[0])


# --- the bare loop -----------------------------------------------------------------------------------------


def _drain_bare(jobs: int, batch: int) -> Mapping[str, float]:
    with RedisServer() as server:
        bare_redis.add(server.client, jobs, 1_000)
        load = server.load()
        command: list[Any] = [sys.executable, "-m", "benchmarks.bare_redis", "drain", server.url, str(jobs), str(batch)]
        told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout)
        done = server.load().since(load)
    return {
        "jobs/s": told["rate"],
        "worker CPU µs/job": told["cpu"],
        "server CPU µs/job": 1e6 * done.cpu / jobs,
        "scripts/job": _scripts(done) / jobs,
    }
