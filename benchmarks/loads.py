"""How long jobs wait under a steady load: half of what sender, server and worker can sustain together."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from typing import Final

from benchmarks.drain import JOBS, drained
from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import Marks, marks_of
from benchmarks.options import Options
from benchmarks.processes import a_worker, using
from benchmarks.report import Row, in_turn, of_latencies
from benchmarks.stores import Store
from benchmarks.tasks import note, stamp
from taskflow import JobHandle, enqueue

LOAD: Final = 4.0
WARMING_UP: Final = 1.0
"""Seconds of a steady load, and of the warm-up before it, in which connections are opened and statements planned."""

TICK: Final = 0.002
"""Seconds. Jobs that fall due within one tick are sent together, as `delay()` does with calls during a round trip."""

KEPT: Final = 90_000
"""The number of jobs for one queue. A queue keeps 100,000 ended jobs: of more jobs, the first would lose their start times."""

AHEAD: Final = 2_000
MAX_AT_ONCE: Final = 500
"""The number of jobs that the sender is ahead of the worker at the highest load, and how many it sends at a time."""


def loaded(store: Store, options: Options) -> list[Row]:
    """Measure waits at half of the highest rate at which jobs are sent and run at once, and at half of the drain rate, which is nearer to
    that rate on few cores. If a rate is given, measure only at that rate."""
    jobs = options.of(JOBS)
    if options.rate:
        return _loaded(store, options, options.rate, "a load of", "load")
    most, alone = run_in_fastest_loop(_most(store, 5 * jobs)), drained(store, jobs)
    return [
        *_loaded(store, options, round(most / 2, -2), f"of {most:,.0f} jobs/s sent and run at once, half:", "load"),
        *_loaded(store, options, round(alone / 2, -2), f"of {alone:,.0f} jobs/s drained, half:", "half of a drain"),
    ]


def _loaded(store: Store, options: Options, rate: float, what: str, part: str) -> list[Row]:
    return in_turn(f"{what} {rate:,.0f} jobs/s", options.repeats, lambda: run_in_fastest_loop(_under_load(store, rate)), part=part)


async def _most(store: Store, jobs: int) -> float:
    """Return jobs per second that run while as many are sent, from the first job's first line to the last one's."""
    with store.start() as server, marks_of(jobs) as marks:
        async with using(server.url), a_worker(server.url, marks=marks):
            for sent in range(0, jobs, MAX_AT_ONCE):
                await _until_run(sent - AHEAD, marks)
                await enqueue(note.bind(number) for number in range(sent, min(sent + MAX_AT_ONCE, jobs)))
            await _until_run(jobs, marks)
        marks.check()
        return marks.rate


async def _until_run(number: int, marks: Marks) -> None:
    while marks.ran < number:  # noqa: ASYNC110  # no event announces it
        await asyncio.sleep(0.001)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Disable garbage collection in the block. The handles that this sender keeps would cause pauses that no real sender has."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _under_load(store: Store, rate: float) -> Mapping[str, float]:
    """Return the latencies at this rate. If one queue cannot keep all jobs, several queues are used in turn."""
    number = math.ceil(rate * (WARMING_UP + LOAD) / KEPT)
    jobs = cycle([stamp] if number == 1 else [stamp.options(queue=f"load-{n}") for n in range(number)])
    with store.start() as server, _without_collections():
        async with using(server.url), a_worker(server.url):
            sent: list[tuple[float, list[JobHandle[float]]]] = []
            began, total = time.monotonic(), 0
            while (now := time.monotonic()) < began + WARMING_UP + LOAD:
                due = int((now - began) * rate) - total
                job = next(jobs)
                handles = await enqueue(job.bind() for _ in range(due))
                if now >= began + WARMING_UP:
                    sent.append((now, handles))
                total += due
                await asyncio.sleep(max(0.0, now + TICK - time.monotonic()))
            await asyncio.sleep(1.0)
            started = [await asyncio.gather(*(handle.result(10) for handle in handles)) for _, handles in sent]
    return of_latencies([start - now for (now, _), starts in zip(sent, started, strict=True) for start in starts])
