"""Drains a very long queue on Postgres, and compares the rate along the way with that of a queue of a thousand jobs."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import results
from benchmarks.drain import SETTLED_IN, fill, until_all_ended
from benchmarks.loops import run_in_fastest_loop
from benchmarks.plots import Curve, Panel, draw
from benchmarks.postgres_server import PostgresServer
from benchmarks.processes import a_worker, cpu_of, cpu_of_family, using
from benchmarks.recorded_worker import SETTLE, Call, read_calls
from benchmarks.report import machine, percentile
from benchmarks.tasks import noop
from taskflow import enqueue
from taskflow.broker.protocol import Broker

NAME: Final = "postgres-backlog"

JOBS: Final = 1_000_000
PORTION: Final = 50_000
SHALLOW: Final = 1_000
ROUNDS: Final = 50
MIDDLE: Final = 10_000
"""The length of a queue that is drained until as many jobs have run as in the long queue. So maintenance of ended jobs, from the 100,001st
on, and autovacuum do the same work, and only the depth differs."""

TARGET: Final = 0.9
"""The required share of the shallow queue's rate."""


@dataclass(frozen=True)
class Portion:
    """Consecutive settlements of `jobs` jobs, which began with `queued` jobs in the queue."""

    queued: int
    jobs: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


@dataclass(frozen=True)
class Drained:
    """A drain. CPU is in microseconds per job, over all jobs."""

    server: str
    portions: Sequence[Portion]
    worker_cpu: float
    server_cpu: float

    @property
    def rate(self) -> float:
        return sum(portion.jobs for portion in self.portions) / sum(portion.seconds for portion in self.portions)


def backlog(arguments: argparse.Namespace) -> None:
    """Print a table, and write it and the raw figures to results/postgres-backlog."""
    jobs = arguments.jobs or JOBS
    shallow = run_in_fastest_loop(_drained(SHALLOW, ROUNDS, arguments.under))
    middle = run_in_fastest_loop(_drained(MIDDLE, max(1, jobs // MIDDLE), arguments.under))
    deep = run_in_fastest_loop(_drained(jobs, 1, arguments.under))
    folder = results.folder(NAME)
    results.write_csv(folder / "portions.csv", [*_rows("short", shallow), *_rows("middle", middle), *_rows("long", deep)])
    table = f"{_title(deep, jobs)}\n\n{_table(shallow, middle, deep)}\n\n{_verdict(shallow, middle, deep)}"
    print(f"\n{table}")
    results.publish(NAME, table, _plot(shallow, middle, deep, folder / "plot"))


# --- measuring -----------------------------------------------------------------------------------------------------


async def _drained(jobs: int, rounds: int, under: Path | None) -> Drained:
    """Pause, fill and resume a worker's queue, `rounds` times. The worker records its settlements."""
    with TemporaryDirectory() as folder, PostgresServer(under=under) as server:
        file = Path(folder, "calls")
        async with using(server.url) as broker, a_worker(server.url, program=("benchmarks.recorded_worker", str(file))) as worker:
            portions: list[Portion] = []
            worker_cpu = server_cpu = 0.0
            for _ in range(rounds):
                seen = len(read_calls(file))
                await broker.admin.pause("default")
                await fill(jobs)
                cpu = cpu_of(worker), cpu_of_family(server.pid)
                await _let_go(broker)
                worker_cpu += cpu_of(worker) - cpu[0]
                server_cpu += cpu_of_family(server.pid) - cpu[1]
                portions += _portions(read_calls(file)[seen:], jobs)
        a_job = 1e6 / (jobs * rounds)
        return Drained(server.rows("SHOW server_version")[0][0], portions, worker_cpu * a_job, server_cpu * a_job)


async def _let_go(broker: Broker) -> None:
    """Resume the queue, and wait until all jobs have ended: one more job, of the lowest priority, is the last."""
    [last] = await enqueue([noop.options(priority=-100).bind()])
    await broker.admin.resume("default")
    await until_all_ended([last])
    await asyncio.sleep(SETTLED_IN)


def _portions(calls: Sequence[Call], jobs: int) -> list[Portion]:
    """Group the settlements into portions. The jobs of the first answer are left out, because their time is unknown."""
    answers = [call for call in calls if call.operation == SETTLE and call.jobs]
    began, done, before = answers[0].at, answers[0].jobs, answers[0].jobs
    found: list[Portion] = []
    for answer in answers[1:]:
        done += answer.jobs
        if done - before >= PORTION or answer is answers[-1]:
            found.append(Portion(jobs - before, done - before, answer.at - began))
            began, before = answer.at, done
    return found


def _rows(queue: str, drained: Drained) -> list[dict[str, object]]:
    return [{"queue": queue, **asdict(portion), "jobs_a_second": round(portion.rate, 1)} for portion in drained.portions]


# --- output --------------------------------------------------------------------------------------------------------


def _title(deep: Drained, jobs: int) -> str:
    return f"PostgreSQL {deep.server}, {machine()}: {jobs:,} queued no-op jobs, one worker, 100 at a time."


def _table(shallow: Drained, middle: Drained, deep: Drained) -> str:
    rows = [
        (f"a queue of {SHALLOW:,}, {ROUNDS} times", shallow.rate, 1.0, shallow.worker_cpu, shallow.server_cpu),
        (
            f"a queue of {MIDDLE:,}, {len(middle.portions)} times",
            middle.rate,
            middle.rate / shallow.rate,
            middle.worker_cpu,
            middle.server_cpu,
        ),
        ("the long queue, all of it", deep.rate, deep.rate / shallow.rate, deep.worker_cpu, deep.server_cpu),
        *((f"with {portion.queued:,} in it", portion.rate, portion.rate / shallow.rate, "", "") for portion in deep.portions),
    ]
    return results.markdown(("queue", "jobs/s", "of the short queue's", "worker CPU µs/job", "server CPU µs/job"), rows)


def _verdict(shallow: Drained, middle: Drained, deep: Drained) -> str:
    ratio, least = deep.rate / shallow.rate, min(portion.rate for portion in deep.portions) / shallow.rate
    outcome = "met" if ratio >= TARGET else "missed"
    told = f"its slowest {PORTION:,} at {least:.2f}, and {deep.rate / middle.rate:.2f} of that of as many jobs in a queue of {MIDDLE:,}"
    return f"The long queue at {ratio:.2f} of the short one's rate (target: {TARGET:g}), {told}. Target {outcome}."


def _plot(shallow: Drained, middle: Drained, deep: Drained, path: Path) -> bool:
    typical = percentile((portion.rate for portion in shallow.portions), 0.5)
    done = sum(portion.jobs for portion in deep.portions)
    curves = [
        _curve("the long queue", deep.portions),
        _curve(f"a queue of {MIDDLE:,}", middle.portions),
        Curve(f"a queue of {SHALLOW:,}", [0.0, done / 1e3], [typical, typical]),
    ]
    return draw(path, "thousand jobs done", [Panel("jobs/s", curves)])


def _curve(label: str, portions: Sequence[Portion]) -> Curve:
    """Return the rate along the number of jobs done, in thousands."""
    middles, done = list[float](), 0
    for portion in portions:
        middles.append((done + portion.jobs / 2) / 1e3)
        done += portion.jobs
    return Curve(label, middles, [portion.rate for portion in portions])
