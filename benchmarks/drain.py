"""Drains a queue on a server with a worker process, and with the bare loop: jobs per second, and CPU time per job in microseconds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import Marks, environment_of, marks_of
from benchmarks.options import Options
from benchmarks.processes import ROOT, a_worker, cpu_of, python, using
from benchmarks.report import Row, in_turn
from benchmarks.stores import Store
from benchmarks.tasks import noop, note, record_in_thread
from taskflow import Job, JobHandle, Status, SyncJob, enqueue
from taskflow.broker.protocol import Broker

JOBS: Final = 20_000
CONCURRENCIES: Final = (100, 32)
FIRST: Final = 5_000
FEW: Final = 10_000
MANY: Final = 500_000
SCHEDULED: Final = 1_000_000
KEPT: Final = 1_000_000
QUEUES: Final = 1_000
SHALLOW: Final = "the shallow queue"
BACKLOGS: Final = (5_000, 10_000, 100_000, 300_000, 1_000_000)

BULK: Final = 100_000
"""The number of jobs whose handles are held at one time, and of ended jobs that a queue keeps."""

CURVE: Final = (1, 3, 10, 32, 100, 300, 1_000)

Note = Job[[int], None] | SyncJob[[int], None]

CHECK_INTERVAL: Final = 0.05
"""Seconds between two checks whether all jobs are done. The checks cost the server next to nothing."""

SETTLED_IN: Final = 0.3
"""Seconds after which a server has closed abandoned connections and has settled down after being filled."""


def drains(store: Store, options: Options) -> list[Row]:
    """Drain no-op async jobs with one `taskflow worker`, with leases, fences, retries and results. Peers are compared at 100 at a time."""
    rows: list[Row] = []
    jobs = options.of(JOBS)
    for concurrency in CONCURRENCIES:
        ours, bare = partial(_drain, store, jobs, concurrency), partial(_drain_bare, store, jobs, concurrency)
        rivals = options.peers.drains(store) if concurrency == CONCURRENCIES[0] else []
        what = f"{jobs:,} queued, {concurrency} at a time"
        rows += in_turn(what, options.repeats, ours, bare, rivals, part=f"drain, {concurrency} at a time")
    return rows


def drained(store: Store, jobs: int) -> float:
    """Drain once. Return jobs per second."""
    return _drain(store, jobs, CONCURRENCIES[0])["jobs/s"]


def threads(store: Store, options: Options) -> list[Row]:
    """Drain plain functions, which run in the worker's threads, beside the peers that support only such functions."""
    rows: list[Row] = []
    jobs = options.of(JOBS)
    for concurrency in CONCURRENCIES:
        rivals = options.peers.in_threads(store) if concurrency == CONCURRENCIES[0] else []
        ours = partial(_drain, store, jobs, concurrency, record_in_thread)
        rows += in_turn(
            f"{jobs:,} plain functions, {concurrency} threads", options.repeats, ours, None, rivals, part=f"threads, {concurrency}"
        )
    return rows


def concurrencies(store: Store, options: Options) -> list[Row]:
    """Drain with more and fewer jobs at a time."""
    rows: list[Row] = []
    for concurrency in CURVE:
        jobs = options.of(min(JOBS, 2_000 * concurrency))
        ours = partial(_drain, store, jobs, concurrency)
        rows += in_turn(f"{jobs:,} queued, {concurrency} at a time", options.repeats, ours, part=f"{concurrency}")
    return rows


def backlogs(store: Store, options: Options) -> list[Row]:
    """Measure the cost of a job among the first few thousand of longer and longer queues."""
    rows: list[Row] = []
    for queued in BACKLOGS:
        jobs = max(BACKLOGS[0], options.of(queued))
        rows += in_turn(f"first {BACKLOGS[0]:,} of {jobs:,}", options.repeats, partial(_cost_of_first, store, jobs), part=f"{queued}")
    return rows


def depths(store: Store, options: Options) -> list[Row]:
    """Drain the first few thousand jobs of a long queue, and as many of a short one."""
    of = partial(_first_of, store)
    few = partial(of, FEW)
    many, scheduled, kept, repeats = options.of(MANY), options.of(SCHEDULED), options.of(KEPT), options.repeats
    return [
        *in_turn(f"first {FIRST:,} of {many:,} (beside: of {FEW:,})", repeats, partial(of, many), few, part="many queued", beside=SHALLOW),
        *in_turn(
            f"of {FEW:,} beside {scheduled:,} scheduled",
            repeats,
            partial(of, FEW, scheduled=scheduled),
            few,
            part="many scheduled",
            beside=SHALLOW,
        ),
        *in_turn(f"of {FEW:,} beside {kept:,} kept", repeats, partial(of, FEW, kept=kept), few, part="many kept", beside=SHALLOW),
        *in_turn(f"of {FEW:,} in {QUEUES:,} queues", repeats, partial(of, FEW, queues=QUEUES), few, part="many queues", beside=SHALLOW),
    ]


async def fill(jobs: int) -> None:
    """Send no-op jobs."""
    for start in range(0, jobs, BULK):
        await enqueue(noop.bind() for _ in range(min(BULK, jobs - start)))


async def leave_ended(broker: Broker, jobs: int) -> None:
    """Send no-op jobs to a running worker until all have ended. No queue gets more jobs than it keeps."""
    for number, start in enumerate(range(0, jobs, BULK)):
        ended = noop.options(queue=f"kept{number}", keep_result=3_600)
        await enqueue(ended.bind() for _ in range(min(BULK, jobs - start)))
    counts = Counter[Status]()
    while counts[Status.SUCCEEDED] < jobs:
        await asyncio.sleep(CHECK_INTERVAL)
        counts = sum((Counter(queue.counts) for queue in await broker.admin.queues()), Counter[Status]())


# --- ours ------------------------------------------------------------------------------------------------


def _drain(store: Store, jobs: int, concurrency: int, job: Note = note) -> Mapping[str, float]:
    return run_in_fastest_loop(_drain_paused(store, jobs, concurrency, job))


async def _drain_paused(store: Store, jobs: int, concurrency: int, job: Note) -> Mapping[str, float]:
    """Pause the queue until it is full, then drain it. The jobs record when they ran, and that none ran twice."""
    with store.start() as server, marks_of(jobs) as marks:
        async with AsyncExitStack() as working:
            async with using(server.url) as broker:
                worker = await working.enter_async_context(a_worker(server.url, concurrency, marks=marks))
                await broker.admin.pause("default")
                await fill_with_notes(jobs, job)
            await asyncio.sleep(SETTLED_IN)
            before, cpu = server.cost(), cpu_of(worker)
            async with using(server.url) as broker:
                await broker.admin.resume("default")
            await until_all_ran(marks, jobs)
            spent, server_cpu = cpu_of(worker) - cpu, server.cost().since(before).cpu
        await asyncio.sleep(SETTLED_IN)
        marks.check()
        return {
            "jobs/s": marks.rate,
            "worker CPU µs/job": 1e6 * spent / jobs,
            "server CPU µs/job": 1e6 * server_cpu / jobs,
            server.trip: server.cost().since(before).trips / jobs,
        }


async def fill_with_notes(jobs: int, job: Note = note) -> None:
    for start in range(0, jobs, BULK):
        await enqueue(job.bind(number) for number in range(start, min(start + BULK, jobs)))


async def until_all_ran(marks: Marks, jobs: int, within: float = 120.0) -> None:
    """Wait until all jobs have run and the last ones are settled, or nearly."""
    give_up_at = time.monotonic() + within
    while (ran := marks.ran) < jobs:
        if time.monotonic() > give_up_at:
            raise AssertionError(f"{ran:,} of {jobs:,} jobs were run within {within:.0f} s")
        await asyncio.sleep(CHECK_INTERVAL)
    await asyncio.sleep(CHECK_INTERVAL)


async def until_all_ended(handles: Sequence[JobHandle[object]]) -> None:
    """Wait by polling, because a server that has to announce each end does more work per job."""
    is_over = False
    while not is_over:
        await asyncio.sleep(CHECK_INTERVAL)
        is_over = all(status and status.is_ended for status in await asyncio.gather(*(handle.status() for handle in handles)))


def _first_of(store: Store, jobs: int, *, scheduled: int = 0, kept: int = 0, queues: int = 1) -> Mapping[str, float]:
    return run_in_fastest_loop(_first_of_filled(store, jobs, scheduled, kept, queues))


async def _first_of_filled(store: Store, jobs: int, scheduled: int, kept: int, queues: int) -> Mapping[str, float]:
    """Drain with a worker that starts once the queue is filled."""
    kinds = [note.options(queue=f"q{number}") for number in range(queues)] if queues > 1 else [note]
    with store.start() as server, marks_of(jobs) as marks:
        async with using(server.url) as broker:
            if kept:
                async with a_worker(server.url):
                    await leave_ended(broker, kept)
            later = noop.options(after=86_400)
            for _ in range(0, scheduled, BULK):
                await enqueue(later.bind() for _ in range(min(BULK, scheduled)))
            for start in range(0, jobs, BULK):
                await enqueue(kinds[number % queues].bind(number) for number in range(start, min(start + BULK, jobs)))
            server.rest()
            await asyncio.sleep(SETTLED_IN)
            async with a_worker(server.url, marks=marks):
                while marks.ran < FIRST:  # noqa: ASYNC110 - the jobs are in another process
                    await asyncio.sleep(CHECK_INTERVAL)
        return {"jobs/s": _rate_of_first(marks, FIRST)}


def _rate_of_first(marks: Marks, jobs: int) -> float:
    """Return jobs per second between the first lines of the first and the last of the first `jobs` jobs that ran."""
    stamps = sorted(filter(None, marks.stamps()))[:jobs]
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def _cost_of_first(store: Store, jobs: int) -> Mapping[str, float]:
    return run_in_fastest_loop(_cost_of_first_paused(store, jobs))


async def _cost_of_first_paused(store: Store, jobs: int) -> Mapping[str, float]:
    """Drain until the first few thousand jobs have run. Jobs that run beyond them before the check are counted too."""
    with store.start() as server, marks_of(jobs) as marks:
        async with using(server.url) as broker, a_worker(server.url, marks=marks) as worker:
            await broker.admin.pause("default")
            await fill_with_notes(jobs)
            server.rest()
            await asyncio.sleep(SETTLED_IN)
            before, cpu = server.cost().cpu, cpu_of(worker)
            await broker.admin.resume("default")
            while marks.ran < BACKLOGS[0]:  # noqa: ASYNC110 - the jobs are in another process
                await asyncio.sleep(0.01)
            done, spent, server_spent = marks.ran, cpu_of(worker) - cpu, server.cost().cpu - before
    rate = _rate_of_first(marks, BACKLOGS[0])
    return {"jobs/s": rate, "worker CPU µs/job": 1e6 * spent / done, "server CPU µs/job": 1e6 * server_spent / done}


# --- the bare loop -----------------------------------------------------------------------------------------


def _drain_bare(store: Store, jobs: int, batch: int) -> Mapping[str, float]:
    with store.start() as server, marks_of(jobs) as marks:
        store.bare.add(server.url, jobs)
        before = server.cost()
        command: list[Any] = [python(), "-m", store.program, "drain", server.url, str(jobs), str(batch)]
        environment = environment_of(marks)
        told = json.loads(
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
        )
        done = server.cost().since(before)
        marks.check()
        return {
            "jobs/s": told["rate"],
            "worker CPU µs/job": told["cpu"],
            "server CPU µs/job": 1e6 * done.cpu / jobs,
            server.trip: done.trips / jobs,
        }
