"""Rolling restarts under load: 500 jobs per second of 200 ms each, while every worker is replaced several times."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import results
from benchmarks.held import TAKES, Began, read, take, until
from benchmarks.loops import run_in_fastest_loop
from benchmarks.places import PLACES, Place
from benchmarks.plots import Curve, Panel, draw
from benchmarks.processes import ROOT, children_of, python, until_there_are, using
from benchmarks.report import machine, percentile
from taskflow import enqueue
from taskflow.broker.protocol import Broker
from taskflow.model.record import Status

NAME: Final = "rolling"

RATE: Final = 500
TICK: Final = 0.01
WORKERS: Final = 2
CONCURRENCY: Final = 100
ROLLS: Final = 4
BETWEEN: Final = 3.0
"""Seconds before the first restart, between two, and after the last."""

TARGET: Final = 1.0
"""The maximum wait of a job in seconds, at the 99th percentile."""

TIMEOUT: Final = 120.0


@dataclass(frozen=True)
class Second:
    """The jobs that fell due in one second, how long they waited, in ms, and whether workers were being replaced."""

    store: str
    second: int
    jobs: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    is_rolling: bool


@dataclass(frozen=True)
class Rolled:
    """When each job was due and began, by number and on one clock, the starts and ends of the restarts, and counts of what went wrong."""

    store: str
    due: Sequence[float]
    began: Sequence[float]
    restarts: Sequence[tuple[float, float]]
    lost: int
    failed: int
    twice: int

    def waits(self, *, is_rolling: bool | None = None) -> list[float]:
        """Return the waits in milliseconds: of all jobs, or of the jobs that fell due during restarts (True) or outside of them (False)."""
        return [
            1e3 * (began - due)
            for due, began in zip(self.due, self.began, strict=True)
            if is_rolling is None or self.is_rolling(due) == is_rolling
        ]

    def is_rolling(self, at: float) -> bool:
        return any(start <= at <= end for start, end in self.restarts)

    def seconds(self) -> list[Second]:
        by_second = dict[int, list[int]]()
        for number, due in enumerate(self.due):
            by_second.setdefault(int(due - self.due[0]), []).append(number)
        return [self._second(second, numbers) for second, numbers in by_second.items()]

    def _second(self, second: int, numbers: Sequence[int]) -> Second:
        waits = [1e3 * (self.began[number] - self.due[number]) for number in numbers]
        is_rolling = any(self.is_rolling(self.due[number]) for number in numbers)
        return Second(self.store, second, len(waits), percentile(waits, 0.5), percentile(waits, 0.99), max(waits), is_rolling)


def rolling(arguments: argparse.Namespace) -> None:
    """Print a table, and write it and the raw figures to results/rolling."""
    rolled = [_of(name, place, arguments.under) for name, place in PLACES.items()]
    seconds = [second for one in rolled for second in one.seconds()]
    folder = results.folder(NAME)
    results.write_csv(folder / "seconds.csv", [asdict(second) for second in seconds])
    table = f"{_title(rolled)}\n\n{_table(rolled)}\n\n{_verdict(rolled)}"
    print(f"\n{table}")
    results.publish(NAME, table, _plot(seconds, folder / "plot"))


# --- measuring -----------------------------------------------------------------------------------------------------


def _of(name: str, place: Place, under: Path | None) -> Rolled:
    with ExitStack() as stack:
        url, folder = stack.enter_context(place(under)), stack.enter_context(TemporaryDirectory())
        return run_in_fastest_loop(_rolled(name, url, Path(folder, "ledger")))


async def _rolled(name: str, url: str, ledger: Path) -> Rolled:
    async with using(url) as broker, _a_fleet(url, broker) as supervisor:
        due, stopping = list[float](), asyncio.Event()
        sending = asyncio.create_task(_send(str(ledger), due, stopping))
        restarts = list[tuple[float, float]]()
        for _ in range(ROLLS):
            await asyncio.sleep(BETWEEN)
            restarts.append(await _replace_all(supervisor))
        await asyncio.sleep(BETWEEN)
        stopping.set()
        await sending
        await until(ledger, lambda began: len({run.number for run in began}) >= len(due), TIMEOUT)
        counts = await _settled(broker, len(due))
    return _judged(name, due, read(ledger), restarts, counts)


def _judged(name: str, due: list[float], began: list[Began], restarts: list[tuple[float, float]], counts: Counter[Status]) -> Rolled:
    runs = Counter(run.number for run in began)
    first = dict[int, float]()
    for run in began:
        first.setdefault(run.number, run.at)
    return Rolled(
        store=name,
        due=due,
        began=[first[number] for number in range(len(due))],
        restarts=restarts,
        lost=len(due) - counts[Status.SUCCEEDED] - counts[Status.FAILED],
        failed=counts[Status.FAILED],
        twice=sum(times > 1 for times in runs.values()),
    )


async def _send(ledger: str, due: list[float], stopping: asyncio.Event) -> None:
    """Send jobs evenly as they fall due. A late job is sent at once, and its wait counts from when it was due."""
    began = time.monotonic()
    while not stopping.is_set():
        numbers = range(len(due), int((time.monotonic() - began) * RATE))
        due.extend(began + (number + 1) / RATE for number in numbers)
        await enqueue(take.bind(ledger, number) for number in numbers)
        await asyncio.sleep(TICK)


async def _settled(broker: Broker, jobs: int) -> Counter[Status]:
    """Wait until all jobs have ended, or the timeout has passed. Return the counts by status."""
    give_up_at = time.monotonic() + TIMEOUT
    while True:
        counts = Counter[Status]()
        for queue in await broker.admin.queues():
            counts.update(queue.counts)
        if counts[Status.SUCCEEDED] + counts[Status.FAILED] >= jobs or time.monotonic() > give_up_at:
            return counts
        await asyncio.sleep(0.1)


@asynccontextmanager
async def _a_fleet(url: str, broker: Broker) -> AsyncIterator[int]:
    """Run a supervisor with workers. Yield its pid once the workers have sessions."""
    flags = ["--processes", str(WORKERS), "--concurrency", str(CONCURRENCY), "--log-level", "error"]
    command = [python(), "-m", "taskflow", "worker", "benchmarks.held", "--broker", url, *flags]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        await until_there_are(WORKERS, broker)
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


async def _replace_all(supervisor: int) -> tuple[float, float]:
    """Restart all workers. Return the times of the signal and of the last old worker's exit."""
    before, old = time.monotonic(), set(children_of(supervisor))
    os.kill(supervisor, signal.SIGHUP)
    async with asyncio.timeout(TIMEOUT):
        while True:
            if not old & set(children_of(supervisor)):
                return before, time.monotonic()
            await asyncio.sleep(0.02)


# --- output --------------------------------------------------------------------------------------------------------


def _title(rolled: Sequence[Rolled]) -> str:
    return (
        f"{machine()}: {RATE} jobs/s of {1e3 * TAKES:.0f} ms, `--processes {WORKERS} --concurrency {CONCURRENCY}`, {ROLLS} "
        f"rolling restarts (SIGHUP), {BETWEEN:g} s between them. Milliseconds from when a job was due to be sent to its first line."
    )


def _table(rolled: Sequence[Rolled]) -> str:
    headings = ("store", "jobs", "lost", "failed", "run twice", "a restart takes s", "restarting: p50 ms", "p99", "max", "else: p50", "p99")
    return results.markdown(headings, [_row(one) for one in rolled])


def _row(one: Rolled) -> tuple[object, ...]:
    during, else_ = one.waits(is_rolling=True), one.waits(is_rolling=False)
    takes = sum(end - start for start, end in one.restarts) / len(one.restarts)
    return (
        *(one.store, len(one.due), one.lost, one.failed, one.twice, takes),
        *(percentile(during, 0.5), percentile(during, 0.99), max(during), percentile(else_, 0.5), percentile(else_, 0.99)),
    )


def _verdict(rolled: Sequence[Rolled]) -> str:
    worst = max(percentile(one.waits(is_rolling=True), 0.99) for one in rolled) / 1e3
    wrong = sum(one.lost + one.failed + one.twice for one in rolled)
    is_met = worst < TARGET and not wrong
    return (
        f"{wrong} jobs lost, failed or run twice; p99 of the wait while workers are replaced at most {worst:.2f} s (target: {TARGET:g}). "
        + ("Target met." if is_met else "Target missed.")
    )


def _plot(seconds: Sequence[Second], path: Path) -> bool:
    """Draw a panel for each store: the waits of each second, and when workers were replaced."""
    panels = []
    for name in PLACES:
        mine = [second for second in seconds if second.store == name]
        xs = [second.second for second in mine]
        panels.append(
            Panel(
                f"{name}: ms",
                [
                    Curve("p99 of a second's waits", xs, [second.p99_ms for second in mine]),
                    Curve("p50", xs, [second.p50_ms for second in mine]),
                    Curve("workers are replaced", xs, [max(one.p99_ms for one in mine) * second.is_rolling for second in mine]),
                ],
            )
        )
    return draw(path, "seconds", panels)
