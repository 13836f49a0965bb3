"""Latencies on a server, in milliseconds: until an idle worker starts a job, until a sender has a result, and of planned jobs."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.processes import ROOT, a_worker, python, using
from benchmarks.report import Row, in_turn, of_lags, of_latencies
from benchmarks.stores import Store
from benchmarks.tasks import noop, stamp, wall
from taskflow import enqueue

TIMES: Final = 300
PEERS_TIMES: Final = 200
EVERY: Final = 0.02
ROUND_TRIPS: Final = 500
WAITERS: Final = 100
WAITED: Final = 10_000
PLANNED: Final = 2_000
SCATTERED: Final = 200
PLANNED_IN: Final = 3.0
SPAN: Final = 3.0

LEAD: Final = 6.0
"""Seconds between the sending and the planned time, for peers that send planned jobs one by one."""
MICROSECOND: Final = 1e-6  # the precision of taskflow's times, in seconds


def latencies(store: Store, options: Options) -> list[Row]:
    """Measure latencies beside the bare notification loop, which takes and runs a job when it is notified."""
    starts, bare_starts = partial(_starts, store), partial(_bare_starts, store)
    repeats, peers = options.repeats, options.peers
    return [
        *in_turn("an idle worker's first line", repeats, starts, bare_starts, peers.starts(store, PEERS_TIMES, EVERY), part="starts"),
        *in_turn("one delay() and its result", repeats, partial(_results, store), None, peers.asks(store, PEERS_TIMES), part="results"),
        *in_turn(f"{WAITERS} waiters at once", repeats, partial(_waiters, store), None, peers.waiters(store, WAITERS), part="waiters"),
    ]


def plans(store: Store, options: Options) -> list[Row]:
    """Measure how late jobs begin that are planned for one time, and for random times."""
    repeats, peers = options.repeats, options.peers
    one, random_ones = f"{PLANNED:,} planned for one instant", f"{SCATTERED} planned at random instants"
    return [
        *in_turn(
            one, repeats, partial(_lags, store, _one_instant), None, peers.plans(store, partial(_one_instant, LEAD)), part="one instant"
        ),
        *in_turn(random_ones, repeats, partial(_lags, store, _scattered), None, peers.plans(store, _scattered), part="random instants"),
    ]


# --- an idle worker ------------------------------------------------------------------------------------------


def _starts(store: Store) -> Mapping[str, float]:
    return run_in_fastest_loop(_start_one_by_one(store))


async def _start_one_by_one(store: Store) -> Mapping[str, float]:
    """Send jobs one by one to an idle worker. Their start times are read afterwards, because waiting for results would disturb them."""
    with store.start() as server:
        async with using(server.url), a_worker(server.url):
            began, handles = [], []
            for _ in range(TIMES):
                await asyncio.sleep(EVERY)
                began.append(time.monotonic())
                handles.append(await stamp.delay())
            await asyncio.sleep(0.5)
            started = [await handle.result(1) for handle in handles]
    return of_latencies([start - begin for start, begin in zip(started, began, strict=True)])


def _bare_starts(store: Store) -> Mapping[str, float]:
    return run_in_fastest_loop(_bare_one_by_one(store))


async def _bare_one_by_one(store: Store) -> Mapping[str, float]:
    with store.start() as server:
        command = [python(), "-m", store.program, "wake", server.url, str(TIMES + 1)]
        worker = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert worker.stdout is not None
        await worker.stdout.readline()  # once it is subscribed
        async with store.bare.adding(server.url) as add:
            began = []
            for _ in range(TIMES + 1):
                await asyncio.sleep(EVERY)
                began.append(time.monotonic())
                await add()
        started = json.loads(await asyncio.wait_for(worker.stdout.read(), 10))
        await worker.wait()
    return of_latencies(
        [start - begin for start, begin in zip(started, began, strict=True)][1:]
    )  # the first one sent the script, or prepared the statement


# --- results ---------------------------------------------------------------------------------------------------


def _results(store: Store) -> Mapping[str, float]:
    return run_in_fastest_loop(_one_after_the_other(store))


async def _one_after_the_other(store: Store) -> Mapping[str, float]:
    with store.start() as server:
        async with using(server.url), a_worker(server.url):
            taken = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                await (await noop.delay()).result(10)
                taken.append(time.perf_counter() - began)
    return of_latencies(taken)


def _waiters(store: Store) -> Mapping[str, float]:
    return run_in_fastest_loop(_at_once(store))


async def _at_once(store: Store) -> Mapping[str, float]:
    async def waiter() -> None:
        for _ in range(WAITED // WAITERS):
            await (await noop.delay()).result(10)

    with store.start() as server:
        async with using(server.url), a_worker(server.url):
            began = time.perf_counter()
            await asyncio.gather(*(waiter() for _ in range(WAITERS)))
            return {"round trips/s": WAITED / (time.perf_counter() - began)}


# --- planned jobs ------------------------------------------------------------------------------------------------


def _one_instant(lead: float = PLANNED_IN) -> list[float]:
    return [time.time() + lead] * PLANNED


def _scattered(lead: float = PLANNED_IN) -> list[float]:
    first = time.time() + lead
    return [first + SPAN * random.random() for _ in range(SCATTERED)]


def _lags(store: Store, instants: Callable[[], Sequence[float]]) -> Mapping[str, float]:
    return run_in_fastest_loop(_lags_of(store, instants()))


async def _lags_of(store: Store, instants: Sequence[float]) -> Mapping[str, float]:
    """Measure the time from the planned time to the first line. A job of ours that begins before its time is an error."""
    with store.start() as server:
        async with using(server.url), a_worker(server.url):
            handles = await enqueue(wall.options(at=datetime.fromtimestamp(instant, UTC)).bind() for instant in instants)
            await asyncio.sleep(max(instants) - time.time() + 1.0)
            started = await asyncio.gather(*(handle.result(10) for handle in handles))
    figures = of_lags([start - instant for start, instant in zip(started, instants, strict=True)], MICROSECOND)
    if figures["early"]:
        raise AssertionError(f"{figures['early']:.0f} jobs began before their time")
    return figures
