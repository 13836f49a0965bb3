"""The cost of limits and fair queueing: a worker drains jobs with them, and as many jobs without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from benchmarks.drain import until_all_ran
from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import marks_of
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.processes import using
from benchmarks.report import Row, in_turn
from taskflow import Concurrency, Job, Worker, enqueue, job
from taskflow.worker.options import WorkerOptions

JOBS: Final = 20_000
CONCURRENCY: Final = 100
KEYS: Final = 1_000
WITHOUT: Final = "without them"

Place = Callable[[], AbstractContextManager[str]]

KINDS: Final[Mapping[str, dict[str, Any]]] = {
    "one key": {"limits": [Concurrency(100)]},
    f"{KEYS:,} keys": {"limits": [Concurrency(1, key="key")]},
    "tenants": {"fair": "key"},
}
"""The options of the jobs: all share one limit, each of a thousand keys has a limit, or a thousand tenants take turns."""


def drains(options: Options) -> list[Row]:
    """Drain with a worker in this process, without logs. All jobs are queued before the worker starts."""
    places: dict[str, Place] = {"memory": lambda: nullcontext("memory://")}
    places |= {name: partial(place, options.under) for name, place in PLACES.items()}
    rows: list[Row] = []
    for name, place in places.items():
        jobs = options.of(JOBS)
        plain = partial(_drain, place, jobs, {})
        for kind, declared in KINDS.items():
            ours = partial(_drain, place, jobs, declared)
            rows += in_turn(f"{name}, {jobs:,} queued, {kind}", options.repeats, ours, plain, part=f"{name}, {kind}", beside=WITHOUT)
    return rows


def _drain(place: Place, jobs: int, declared: dict[str, Any]) -> Mapping[str, float]:
    return run_in_fastest_loop(_drain_filled(place, jobs, declared))


async def _drain_filled(place: Place, jobs: int, declared: dict[str, Any]) -> Mapping[str, float]:
    with place() as url, marks_of(jobs) as marks:

        async def note(number: int, key: int) -> None:
            marks.mark(number)

        noted: Job[[int, int], None] = job(name="benchmarks.limited", **declared)(note)
        async with using(url):
            await enqueue(noted.bind(number, number % KEYS) for number in range(jobs))
            async with Worker(options=WorkerOptions(concurrency=CONCURRENCY, subscribers=())):
                await until_all_ran(marks, jobs)
        marks.check()
        return {"jobs/s": marks.rate}
