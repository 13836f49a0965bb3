"""Measure how fast your store accepts jobs and a worker runs them, in a temporary namespace: `python -m benchmarks.own_store`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from taskflow import enqueue, job
from taskflow.app.app import default_app
from taskflow.broker.admin import Admin
from taskflow.broker.url import connect, masked
from taskflow.model.clock import SYSTEM_RANDOM
from taskflow.model.record import ENDED

SINGLY_FOR: Final = 2.0
"""Seconds for which calls are sent one after another."""

LONE: Final = 200
PAUSES_BETWEEN_CALLS: Final = (0.005, 0.025)
"""Seconds between two lone jobs, so that the worker waits for the next one."""

CHECK_INTERVAL: Final = 0.02
STARTED_TIMEOUT: Final = 60.0
ROOT: Final = Path(__file__).parents[1]


@job(name="taskflow.bench.nothing", queue="bench", max_attempts=1)
async def nothing() -> float:
    """Return the time of the start, on the clock that all processes of a machine share."""
    return time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_store", description=__doc__)
    parser.add_argument("--broker", metavar="URL", help="the store (default: TASKFLOW_BROKER)")
    parser.add_argument("--jobs", type=int, default=10_000, metavar="N", help="the number of jobs (default: 10000)")
    parser.add_argument("--concurrency", type=int, default=100, metavar="N", help="jobs at a time in the worker (default: 100)")
    parser.add_argument("--json", action="store_true", help="JSON, for programs; latencies are in seconds, as p50 and p99")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the namespace is dropped
    app = default_app()
    app.flag(broker=arguments.broker)
    with scratch_store(app.broker_url()) as url:
        app.flag(broker=url)
        figures = asyncio.run(_measure(arguments.jobs, arguments.concurrency, url))
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(_lines(figures)))


@contextmanager
def scratch_store(url: str) -> Iterator[str]:
    """Yield the URL of a new store beside the one at `url`, and delete it when the block ends: a namespace on a server, or a new folder."""
    scheme, _, path, query, _ = urlsplit(url)
    if scheme == "memory":
        raise SystemExit("a memory:// broker belongs to one process: use --broker to name a store that processes can share")
    if scheme == "sqlite":
        beside = os.path.dirname(os.path.abspath(unquote(path.removeprefix("/"))))
        with tempfile.TemporaryDirectory(prefix=".taskflow-bench-", dir=beside) as folder:
            yield f"sqlite:///{quote(f'{folder}/queue.db')}"
        return
    options = dict(parse_qsl(query)) | {"namespace": f"taskflow-bench-{secrets.token_hex(4)}"}
    options.pop("migrate", None)  # there is nothing to migrate yet
    scratch = f"{url.partition('?')[0]}?{urlencode(options)}"
    try:
        yield scratch
    finally:
        asyncio.run(_drop(scratch))


async def _drop(url: str) -> None:
    broker: Any = connect(url)
    try:
        await broker.drop_namespace()
    finally:
        await broker.close()


async def _measure(jobs: int, concurrency: int, url: str) -> dict[str, Any]:
    """Return rates in jobs per second, and latencies in seconds: p50 and p99."""
    app = default_app()
    try:
        admin = app.broker().admin
        await admin.pause(nothing.queue)  # also creates the store, which is not measured
        _say("measuring how fast jobs are sent")
        enqueue_rate, delay_rate = await _send(jobs)
        command = [sys.executable, "-m", "taskflow", "worker", "benchmarks.own_store", "--log-level", "warning"]
        environment = {**os.environ, "TASKFLOW_BROKER": url}
        with subprocess.Popen([*command, "--concurrency", f"{concurrency}"], cwd=ROOT, env=environment) as worker:  # noqa: ASYNC220  # starts at once
            try:
                _say("measuring how fast a worker runs them")
                await _until_at_work(admin, worker)
                drain_rate = await _drain(admin, worker)
                _say("measuring how long a lone job takes")
                to_start, to_result = await _send_lone(min(LONE, jobs))
            finally:
                worker.terminate()
    finally:
        await app.close()
    return {
        "broker": masked(url),
        "jobs": jobs,
        "concurrency": concurrency,
        "enqueue_rate": enqueue_rate,
        "delay_rate": delay_rate,
        "drain_rate": drain_rate,
        "to_start": to_start,
        "to_result": to_result,
    }


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


async def _until_at_work(admin: Admin, worker: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(STARTED_TIMEOUT):
        while not await admin.workers():
            _require(worker)
            await asyncio.sleep(CHECK_INTERVAL)


async def _drain(admin: Admin, worker: subprocess.Popen[bytes]) -> float:
    """Let the worker run all jobs. Return its rate."""
    began = time.monotonic()
    await admin.resume(nothing.queue)
    while True:
        [queue] = await admin.queues()
        done = sum(queue.counts[status] for status in ENDED)
        if done >= sum(queue.counts.values()):
            return done / (time.monotonic() - began)
        _require(worker)
        await asyncio.sleep(CHECK_INTERVAL)


async def _send_lone(number: int) -> tuple[list[float], list[float]]:
    """Send jobs to an idle worker, one after another. Return the latencies from `delay` to the start and to the result."""
    to_start, to_result = list[float](), list[float]()
    for _ in range(number):
        await asyncio.sleep(SYSTEM_RANDOM.uniform(*PAUSES_BETWEEN_CALLS))
        began = time.monotonic()
        started = await (await nothing.delay()).result(timeout=STARTED_TIMEOUT)
        to_start.append(max(0.0, started - began))
        to_result.append(time.monotonic() - began)
    return _percentiles(to_start), _percentiles(to_result)


def _percentiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [*values, *values]
    hundredths = quantiles(values, n=100, method="inclusive")
    return [hundredths[49], hundredths[98]]


def _require(worker: subprocess.Popen[bytes]) -> None:
    if (code := worker.poll()) is not None:
        raise SystemExit(f"the worker ended too early, with exit code {code}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    [start, late_start], [result, late_result] = ([1000 * seconds for seconds in figures[each]] for each in ("to_start", "to_result"))
    yield f"broker        {figures['broker']}"
    yield f"send many     {figures['enqueue_rate']:9,.0f} jobs/s   enqueue() with {figures['jobs']:,} calls"
    yield f"send singly   {figures['delay_rate']:9,.0f} jobs/s   delay() in a loop, which waits for each answer"
    yield f"run           {figures['drain_rate']:9,.0f} jobs/s   one worker process, {figures['concurrency']:,} jobs at a time"
    yield f"lone job      {start:9,.2f} ms p50   {late_start:,.2f} ms p99   from delay() to its start"
    yield f"              {result:9,.2f} ms p50   {late_result:,.2f} ms p99   from delay() to its result here"


if __name__ == "__main__":
    main()
