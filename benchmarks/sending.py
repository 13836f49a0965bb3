"""Sending to a server from one process: many callers of delay(), a single caller, and enqueue() in bulk."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.processes import using
from benchmarks.report import Row, in_turn
from benchmarks.stores import Command, Store
from benchmarks.tasks import noop
from taskflow import enqueue

CALLERS: Final = 32
CALLS: Final = 20_000
BULK: Final = 100_000
LONE: Final = 2_000


def sendings(store: Store, options: Options) -> list[Row]:
    """Measure sending beside as many callers with one command each, a bulk insert of a thousand jobs, and one command of the driver."""
    ran, repeats, peers = partial(_ran, store), options.repeats, options.peers
    calls, bulk = options.of(CALLS), options.of(BULK)
    in_bulk, bare_in_bulk = ran(partial(_bulk, bulk)), partial(_bare_bulk, store, bulk)
    many, bare_many = ran(partial(_callers, calls)), ran(partial(_bare_callers, calls))
    return [
        *in_turn(f"{CALLERS} callers of delay()", repeats, many, bare_many, peers.callers(store, CALLERS), part="callers"),
        *in_turn(f"enqueue() of {bulk:,}", repeats, in_bulk, bare_in_bulk, peers.bulk(store), part="bulk"),
        *in_turn("a lone delay()", repeats, ran(_lone), ran(_bare_lone), part="lone"),
        *in_turn("a lone delay() beside the driver's client", repeats, ran(_lone), ran(_client_lone), part="lone by the client"),
    ]


Measurement = Callable[[Store, str], Awaitable[Mapping[str, float]]]


def _ran(store: Store, measurement: Measurement) -> Callable[[], Mapping[str, float]]:
    async def with_server() -> Mapping[str, float]:
        with store.start() as server:
            return await measurement(store, server.url)

    return lambda: run_in_fastest_loop(with_server())


async def _callers(calls: int, store: Store, url: str) -> Mapping[str, float]:
    async with using(url):
        return await _by_many(noop.delay, calls)


async def _bare_callers(calls: int, store: Store, url: str) -> Mapping[str, float]:
    async with store.bare.commands(url, CALLERS) as send:
        return await _by_many(send, calls)


async def _by_many(send: Command, calls: int) -> Mapping[str, float]:
    async def caller() -> None:
        for _ in range(calls // CALLERS):
            await send()

    await send()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return {"jobs/s": calls / (time.perf_counter() - began), "CPU µs/job": 1e6 * (time.process_time() - cpu) / calls}


async def _bulk(jobs: int, store: Store, url: str) -> Mapping[str, float]:
    async with using(url):
        await noop.delay()
        began, cpu = time.perf_counter(), time.process_time()
        await enqueue(noop.bind() for _ in range(jobs))
        return {"jobs/s": jobs / (time.perf_counter() - began), "CPU µs/job": 1e6 * (time.process_time() - cpu) / jobs}


def _bare_bulk(store: Store, jobs: int) -> Mapping[str, float]:
    with store.start() as server:
        return {"jobs/s": store.bare.add(server.url, jobs)}


async def _lone(store: Store, url: str) -> Mapping[str, float]:
    async with using(url):
        return await _one_by_one(noop.delay)


async def _bare_lone(store: Store, url: str) -> Mapping[str, float]:
    async with store.bare.lone_command(url) as send:
        return await _one_by_one(send)


async def _client_lone(store: Store, url: str) -> Mapping[str, float]:
    async with store.bare.commands(url, 1) as send:
        return await _one_by_one(send)


async def _one_by_one(send: Command) -> Mapping[str, float]:
    await send()
    taken: list[float] = []
    for _ in range(LONE):
        began = time.perf_counter()
        await send()
        taken.append(1e6 * (time.perf_counter() - began))
    return {"p50 µs": statistics.median(taken)}
