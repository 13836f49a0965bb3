"""Worker processes, and what they cost."""

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
"""Of the environment: the interpreter that workers and bare loops run in; without it that of the benchmark."""


def python() -> str:
    return os.environ.get(PYTHON, sys.executable)


@asynccontextmanager
async def using(url: str) -> AsyncIterator[Broker]:
    """What is sent in the block goes there."""
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
    """`taskflow worker` with its logs off, its pid, once it has run a job; or the same command of another program."""
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
        with contextlib.suppress(ProcessLookupError):  # it has failed, and said why
            process.terminate()
        await process.wait()


@asynccontextmanager
async def workers(url: str, number: int, broker: Broker, *flags: str) -> AsyncIterator[list[int]]:
    """So many of `taskflow worker` with the jobs that are held, their pids, once all have sessions. At the end they are told to go."""
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
    """Of any name, at most for a minute."""
    async with asyncio.timeout(60):
        while True:
            if len(await broker.admin.workers()) >= workers:
                return
            await asyncio.sleep(0.05)


def cpu_of(pid: int) -> float:
    """Seconds, of all its threads, to the nanosecond: Linux alone tells them so."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def cpu_of_family(pid: int) -> float:
    """Seconds of a process and its children, those included that have ended."""
    spent = cpu_of(pid) + _cpu_of_the_ended(pid)
    for child in children_of(pid):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            spent += cpu_of(child)
    return spent


def cpu_of_session(leader: int) -> float:
    """Seconds of all processes of the session that it leads, to the clock's tick, those of what has ended included."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            told = _stat_of(int(folder.name))
            if int(told[3]) == leader:
                ticks += sum(map(int, told[11:15]))  # its own, and its children's that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_of_session(leader: int) -> float:
    """MB of resident memory of all its processes; what they share is counted for each."""
    used = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it has ended
            if int(_stat_of(int(folder.name))[3]) == leader:
                used += memory_of(int(folder.name))
    return used


def _cpu_of_the_ended(parent: int) -> float:
    """To the clock's tick."""
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
    """What follows the process's name, which may hold anything: state, parent, and so on, see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def memory_of(pid: int) -> float:
    """MB of resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [told] = [line for line in lines if line.startswith("VmRSS:")]
    return int(told.split()[1]) / 1024
