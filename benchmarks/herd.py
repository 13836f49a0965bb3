"""A lone job beside many idle workers: what it costs the server, and how soon its result arrives.

As a program, `python -m benchmarks.herd URL NUMBER` runs NUMBER workers in one process until it is killed. Each has separate connections.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.peers.rivals import CALLS, SERVER_CPU
from benchmarks.processes import ROOT, python, until_there_are, using
from benchmarks.report import Measured, Row, in_turn, of_latencies
from benchmarks.stores import Store
from benchmarks.tasks import noop
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.session import Beat, Session
from taskflow.worker.worker import Worker

WORKERS: Final = (1, 10, 50, 200)
IN_ONE_PROCESS: Final = 25
LONE_JOBS: Final = 300
EVERY: Final = 0.02
SETTLED_IN: Final = 8.0
"""Seconds until the workers no longer poll as often as new workers do."""

SESSIONS: Final = 500
BEATS_OF_EACH: Final = 6


def herds(store: Store, options: Options) -> list[Row]:
    """Send one job at a time and await its result, beside 1, 10, 50 and 200 idle workers. A peer's workers are processes."""
    rows: list[Row] = []
    for workers in WORKERS:
        what = f"a lone job beside {workers} idle worker{'s' if workers > 1 else ''}"
        rivals = options.peers.herds(store, workers)
        rows += in_turn(what, options.repeats, partial(_lone_jobs, store, workers), None, rivals, part=f"{workers}")
    return [*rows, *in_turn("heartbeats of idle workers", options.repeats, partial(_heartbeats, store), part="heartbeats")]


def _lone_jobs(store: Store, workers: int) -> Mapping[str, float]:
    return run_in_fastest_loop(_one_by_one(store, workers))


async def _one_by_one(store: Store, workers: int) -> Measured:
    with store.start() as server:
        async with using(server.url) as broker, idle_workers(server.url, workers, broker):
            await (await noop.delay()).result(60)
            await asyncio.sleep(SETTLED_IN)
            idle, idle_cpu = server.sent(), server.cost().cpu
            await asyncio.sleep(LONE_JOBS * EVERY)
            before, cpu, taken = server.sent(), server.cost().cpu, list[float]()
            idle, idle_cpu = before - idle, cpu - idle_cpu
            for _ in range(LONE_JOBS):
                began = time.perf_counter()
                await (await noop.delay()).result(10)
                taken.append(time.perf_counter() - began)
                await asyncio.sleep(EVERY - min(EVERY, taken[-1]))
            calls, spent = server.sent() - before - idle, server.cost().cpu - cpu - idle_cpu
            return {CALLS: calls / LONE_JOBS, SERVER_CPU: 1e6 * spent / LONE_JOBS, **of_latencies(taken)}


def _heartbeats(store: Store) -> Mapping[str, float]:
    return run_in_fastest_loop(_beat(store))


async def _beat(store: Store) -> Measured:
    """Send heartbeats of many sessions without leases, one after another. An idle worker sends one every 6.7 s."""
    with store.start() as server:
        async with using(server.url) as broker:
            ids = [secrets.token_bytes(16) for _ in range(SESSIONS)]
            for each in ids:
                await broker.register(Session(id=each, name="idle"))
            before = server.cost().cpu
            for _ in range(BEATS_OF_EACH):
                for each in ids:
                    await broker.beat(Beat(session=each, looks=True))
            return {"µs of the server's CPU a beat": 1e6 * (server.cost().cpu - before) / SESSIONS / BEATS_OF_EACH}


@asynccontextmanager
async def idle_workers(url: str, number: int, broker: Broker) -> AsyncIterator[None]:
    """Start `number` workers, several in each process. Inside the block, all of them have sessions."""
    shares = [min(IN_ONE_PROCESS, number - first) for first in range(0, number, IN_ONE_PROCESS)]
    before = len(await broker.admin.workers())
    processes = [await asyncio.create_subprocess_exec(python(), "-m", "benchmarks.herd", url, str(share), cwd=ROOT) for share in shares]
    try:
        await until_there_are(before + number, broker)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            await process.wait()


async def _work(url: str, number: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(number):
            with default_app().using(connect(url)):
                await stack.enter_async_context(Worker(grace=0.0))
        await asyncio.Event().wait()


if __name__ == "__main__":
    run_in_fastest_loop(_work(sys.argv[1], int(sys.argv[2])))
