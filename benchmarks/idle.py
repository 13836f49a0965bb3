"""The cost of idle workers: what they send to the server, and their CPU and memory."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.peers.rivals import IDLE_CPU, IDLE_MEMORY, IDLE_TRIPS
from benchmarks.processes import a_worker, cpu_of, memory_of, using
from benchmarks.report import Measured, Row, in_turn
from benchmarks.stores import Store

IDLE_FOR: Final = 60.0
"""Seconds, long enough to include what a worker does once a minute."""
PEERS_IDLE_FOR: Final = 6.0
SETTLED_IN: Final = 45.0
"""Seconds, longer than the 40 s after which a listening connection first sends something. Until then, PostgreSQL may not report its
transactions, and those of the start must not be counted."""

FLEET: Final = 4


def idleness(store: Store, options: Options) -> list[Row]:
    """Measure one idle worker beside those of peers, and a fleet of idle workers."""
    rows: list[Row] = []
    for workers in (1, FLEET):
        rivals = options.peers.idles(store, PEERS_IDLE_FOR) if workers == 1 else []
        what = f"{workers} idle worker{'s' if workers > 1 else ''}"
        rows += in_turn(what, options.repeats, partial(_idle, store, workers), None, rivals, part=f"{workers}")
    return rows


def _idle(store: Store, workers: int) -> Measured:
    return run_in_fastest_loop(_idle_beside(store, workers))


async def _idle_beside(store: Store, workers: int) -> Measured:
    """Measure idle workers. On Redis, commands of scripts are counted too; on Postgres, this measurement itself is a transaction."""
    with store.start() as server:
        async with AsyncExitStack() as stack:
            async with using(server.url):
                pids = [await stack.enter_async_context(a_worker(server.url)) for _ in range(workers)]
            await asyncio.sleep(SETTLED_IN)
            told, spent, cpu = server.sent(), server.cost().cpu, sum(map(cpu_of, pids))
            await asyncio.sleep(IDLE_FOR)
            return {
                IDLE_TRIPS[store.name]: (server.sent() - told) / IDLE_FOR,
                IDLE_CPU: 100 * (sum(map(cpu_of, pids)) - cpu) / IDLE_FOR / workers,
                IDLE_MEMORY: sum(map(memory_of, pids)) / workers,
                "CPU of the server, %": 100 * (server.cost().cpu - spent) / IDLE_FOR,
            }
