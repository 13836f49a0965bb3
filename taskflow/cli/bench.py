"""`taskflow bench`: measures how fast the store takes jobs, and how fast a worker runs them, in a throw-away namespace."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import quantiles
from typing import Final

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.sending import enqueue
from taskflow.broker.console import Console
from taskflow.broker.url import masked
from taskflow.cli.bench_jobs import nothing
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.scratch_store import scratch_store
from taskflow.cli.terminal import room, wrapped
from taskflow.cli.worker_process import worker_process
from taskflow.model.errors import TaskflowError
from taskflow.model.printable import one_line
from taskflow.model.record import ENDED
from taskflow.model.seams import SYSTEM_RANDOM

SINGLY_FOR: Final = 2.0
"""Seconds for which calls are sent one after another."""

LONE: Final = 200
PAUSES_BETWEEN_CALLS: Final = (0.005, 0.025)
"""Seconds between two lone jobs, so that the worker waits for the next one."""

LOOK_EVERY: Final = 0.02
STARTED_WITHIN: Final = 60.0


class Figures(msgspec.Struct, kw_only=True):
    """Rates are in jobs a second, latencies in seconds: [p50, p99]."""

    broker: str
    jobs: int
    concurrency: int
    enqueue_rate: float
    delay_rate: float
    drain_rate: float = 0.0
    to_start: list[float] = msgspec.field(default_factory=list)
    to_result: list[float] = msgspec.field(default_factory=list)


def run(arguments: argparse.Namespace) -> int:
    app = default_app()
    app.flag(broker=arguments.broker)
    with scratch_store(app.broker_url()) as url:
        app.flag(broker=url)
        figures = asyncio.run(_measure(app, arguments, url))
    if arguments.json:
        print_json(msgspec.structs.asdict(figures))
    else:
        for line in _lines(figures):
            print(line)
    return Exit.OK


async def _measure(app: App, arguments: argparse.Namespace, url: str) -> Figures:
    try:
        console = app.broker().console
        await console.pause(nothing.queue)  # also creates the store, which is not measured
        _say("measuring how fast jobs are sent")
        enqueue_rate, delay_rate = await _send(arguments.jobs)
        figures = Figures(
            broker=masked(url), jobs=arguments.jobs, concurrency=arguments.concurrency, enqueue_rate=enqueue_rate, delay_rate=delay_rate
        )
        options = ("taskflow.cli.bench_jobs", "--concurrency", f"{arguments.concurrency}")
        with worker_process(url, *options, say=_say) as worker:
            _say("measuring how fast a worker runs them")
            await _until_at_work(console, worker)
            figures.drain_rate = await _drain(console, worker)
            _say("measuring how long a lone job takes")
            figures.to_start, figures.to_result = await _send_lone(min(LONE, arguments.jobs))
        return figures
    finally:
        await app.close()


async def _send(jobs: int) -> tuple[float, float]:
    """Return the rates of `enqueue` with many calls, and of `delay` in a loop."""
    calls = [nothing.bind() for _ in range(jobs)]
    began = time.monotonic()
    await enqueue(calls)
    between, sent = time.monotonic(), 0
    while sent < jobs and time.monotonic() - between < SINGLY_FOR:
        await nothing.delay()
        sent += 1
    return jobs / (between - began), sent / (time.monotonic() - between)


async def _until_at_work(console: Console, worker: subprocess.Popen[str]) -> None:
    give_up_at = time.monotonic() + STARTED_WITHIN
    while not await console.workers():
        _require(worker)
        if time.monotonic() > give_up_at:
            raise TaskflowError(f"the worker has not started within {STARTED_WITHIN:g} s")
        await asyncio.sleep(LOOK_EVERY)


async def _drain(console: Console, worker: subprocess.Popen[str]) -> float:
    """Let the worker run all jobs. Return its rate."""
    began = time.monotonic()
    await console.resume(nothing.queue)
    while True:
        [queue] = await console.queues()
        done = sum(queue.counts[status] for status in ENDED)
        if done >= sum(queue.counts.values()):
            return done / (time.monotonic() - began)
        _require(worker)
        await asyncio.sleep(LOOK_EVERY)


async def _send_lone(number: int) -> tuple[list[float], list[float]]:
    """Send jobs to an idle worker, one after another. Return the latencies from `delay` to the start and to the result."""
    to_start, to_result = list[float](), list[float]()
    for _ in range(number):
        await asyncio.sleep(SYSTEM_RANDOM.uniform(*PAUSES_BETWEEN_CALLS))
        began = time.monotonic()
        started = await (await nothing.delay()).result(timeout=STARTED_WITHIN)
        to_start.append(max(0.0, started - began))
        to_result.append(time.monotonic() - began)
    return _percentiles(to_start), _percentiles(to_result)


def _percentiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [*values, *values]
    hundredths = quantiles(values, n=100, method="inclusive")
    return [hundredths[49], hundredths[98]]


def _require(worker: subprocess.Popen[str]) -> None:
    if (code := worker.poll()) is not None:
        raise TaskflowError(f"the worker ended too early, with exit code {code}")


def _say(line: str) -> None:
    print(f"taskflow: {line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def _lines(figures: Figures) -> Iterator[str]:
    [start, late_start], [result, late_result] = ([1000 * seconds for seconds in both] for both in (figures.to_start, figures.to_result))
    yield f"broker        {one_line(figures.broker)}"
    yield f"send many     {figures.enqueue_rate:9,.0f} jobs/s   enqueue() with {figures.jobs:,} calls"
    yield f"send singly   {figures.delay_rate:9,.0f} jobs/s   delay() in a loop, which waits for each answer"
    yield f"run           {figures.drain_rate:9,.0f} jobs/s   one worker process, {figures.concurrency:,} jobs at a time"
    yield f"lone job      {start:9,.2f} ms p50   {late_start:,.2f} ms p99   from delay() to its start"
    yield f"              {result:9,.2f} ms p50   {late_result:,.2f} ms p99   from delay() to its result here"
    for line in (
        "The job does nothing: these are the costs of the queue, on this machine and with the present load on it and on the store.",
        "Your jobs add their own time. More worker processes run more jobs, until the store is busy.",
    ):
        yield from wrapped(line, room())
