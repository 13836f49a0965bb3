"""Worker processes, and their CPU time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.marks import Marks, environment_of
from benchmarks.tasks import stamp
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect

ROOT = Path(__file__).parents[1]

PYTHON = "TASKFLOW_BENCHMARK_PYTHON"
"""The environment variable with the interpreter for workers and bare loops (default: the benchmark's interpreter)."""


def python() -> str:
    return os.environ.get(PYTHON, sys.executable)


@asynccontextmanager
async def using(url: str) -> AsyncIterator[Broker]:
    """Use the broker with this URL inside the block."""
    broker = connect(url)
    try:
        with default_app().using(broker):
            yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def a_worker(
    url: str, concurrency: int = 100, program: Sequence[str] = ("taskflow",), *, flags: Sequence[str] = (), marks: Marks | None = None
) -> AsyncIterator[int]:
    """Run `taskflow worker` without logs, or the same command of another program. Yield its pid once it has run a job."""
    flags = ["--concurrency", str(concurrency), "--log-level", "warning", "--grace", "0", *flags]
    process = await asyncio.create_subprocess_exec(
        python(),
        *("-m", *program, "worker", "benchmarks.tasks", "--broker", url, *flags),
        cwd=ROOT,
        env=None if marks is None else environment_of(marks),
    )
    try:
        await (await stamp.options(priority=100).delay()).result(60)  # before all that may be queued
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has failed, and reported why
            process.terminate()
        await process.wait()


@asynccontextmanager
async def workers(url: str, number: int, broker: Broker, *flags: str) -> AsyncIterator[list[int]]:
    """Run `number` processes of `taskflow worker` with the jobs in `held`, inside the block. Yield their pids once all have sessions."""
    before = len(await broker.admin.workers())
    command = [python(), "-m", "taskflow", "worker", "benchmarks.held", "--broker", url, "--log-level", "error", *flags]
    started = [await asyncio.create_subprocess_exec(*command, cwd=ROOT) for _ in range(number)]
    try:
        await until_there_are(before + number, broker)
        yield [process.pid for process in started]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in started:
            await process.wait()


async def until_there_are(workers: int, broker: Broker) -> None:
    """Wait for at most a minute until the store has this number of workers."""
    async with asyncio.timeout(60):
        while True:
            if len(await broker.admin.workers()) >= workers:
                return
            await asyncio.sleep(0.05)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, in nanosecond precision, which only Linux provides."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def cpu_of_family(pid: int) -> float:
    """Return the CPU seconds of a process and its children, including ended ones."""
    spent = cpu_of(pid) + _cpu_of_the_ended(pid)
    for child in children_of(pid):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            spent += cpu_of(child)
    return spent


def cpu_of_session(leader: int) -> float:
    """Return the CPU seconds of all processes of a POSIX session, including ended ones, in clock ticks."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            told = _stat_of(int(folder.name))
            if int(told[3]) == leader:
                ticks += sum(map(int, told[11:15]))  # its own ticks, and those of its ended children
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_of_session(leader: int) -> float:
    """Return the resident memory of all processes of a session in MB. Shared memory counts for each of them."""
    used = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it has ended
            if int(_stat_of(int(folder.name))[3]) == leader:
                used += memory_of(int(folder.name))
    return used


def _cpu_of_the_ended(parent: int) -> float:
    """Return the CPU seconds of a process's ended children, in clock ticks."""
    user, system = _stat_of(parent)[13:15]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def children_of(parent: int) -> list[int]:
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if int(_stat_of(int(folder.name))[1]) == parent:
                found.append(int(folder.name))
    return found


def _stat_of(pid: int) -> list[str]:
    """Return the fields after the process's name, which may contain any characters: state, parent and so on; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def memory_of(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [told] = [line for line in lines if line.startswith("VmRSS:")]
    return int(told.split()[1]) / 1024
