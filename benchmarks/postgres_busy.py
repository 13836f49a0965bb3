"""Postgres under other programs' long transactions: dead rows that cannot be removed, a steady rate of jobs, and one worker.

While a transaction that has written is open, the server keeps every row that was alive when the transaction began. Three transactions of
two minutes each overlap, so that at least one is always open. A claim must not walk the dead rows of jobs that are long gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg

from benchmarks import busy_figures
from benchmarks.busy_figures import Run, Sample
from benchmarks.loops import run_in_fastest_loop
from benchmarks.postgres_server import PostgresServer
from benchmarks.processes import ROOT, a_worker, cpu_of, cpu_of_family, using
from benchmarks.recorded_worker import read_calls
from benchmarks.steady import read_sendings

OTHERS: Final = 3
OPEN_FOR: Final = 120.0
APART: Final = 40.0

SETTLED_IN: Final = 3.0
AFTERWARDS: Final = 2.0
"""Seconds before the first job is sent, and after the last one."""

_SAMPLE: Final = """
SELECT (SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'taskflow'),
    (SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'taskflow' AND relname = 'jobs'),
    (SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'taskflow' AND c.relkind = 'r'),
    (SELECT coalesce(max(age(backend_xmin)), 0) FROM pg_stat_activity)
"""
"""Reads statistics that the server keeps anyway, and no table."""


def busy(arguments: argparse.Namespace) -> None:
    """Print a table, and write it and the raw figures to results/postgres-busy. If the target is missed, exit with 1."""
    run = run_in_fastest_loop(_measure(60.0 * arguments.minutes, arguments.rate or 1_000.0, arguments.under))
    failures = busy_figures.publish(run)
    for failure in failures:
        print(f"missed: {failure}")
    if failures:
        sys.exit(1)


@dataclass(frozen=True)
class _Files:
    calls: Path
    sendings: Path


async def _measure(seconds: float, rate: float, under: Path | None) -> Run:
    with TemporaryDirectory() as folder, PostgresServer(under=under) as server:
        files = _Files(Path(folder, "calls"), Path(folder, "sendings"))
        program = ("benchmarks.recorded_worker", str(files.calls))
        async with using(server.url), a_worker(server.url, program=program) as worker:
            await asyncio.sleep(SETTLED_IN)
            began, samples = await _watch(server, worker, files, seconds, rate)
        return Run(
            began=began,
            seconds=int(seconds),
            rate=rate,
            server=server.rows("SHOW server_version")[0][0],
            calls=read_calls(files.calls, began),
            sendings=read_sendings(files.sendings),
            samples=samples,
        )


async def _watch(server: PostgresServer, worker: int, files: _Files, seconds: float, rate: float) -> tuple[float, list[Sample]]:
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_connected(server))
        await connection.execute("CREATE TABLE public.others (number integer)")
        command = ["-m", "benchmarks.steady", server.url, str(rate), str(seconds), str(files.sendings)]
        sender = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        stack.callback(_end, sender)
        assert sender.stdout is not None
        began = float(await sender.stdout.readline())
        for number in range(OTHERS):
            await stack.enter_async_context(_beside(_write_and_wait(server, number)))
        samples = await _sample_each_second(connection, server.pid, worker, began, int(seconds))
        await asyncio.sleep(AFTERWARDS)
        if code := await asyncio.wait_for(sender.wait(), 10.0):
            raise RuntimeError(f"the sender ended with {code}")
    return began, samples


async def _write_and_wait(server: PostgresServer, number: int) -> None:
    """Behave like another application: write to a table and keep the transaction open, again and again."""
    await asyncio.sleep(number * APART)
    async with _connected(server) as connection:
        while True:
            async with connection.transaction():
                await connection.execute("INSERT INTO public.others (number) VALUES ($1)", number)
                await asyncio.sleep(OPEN_FOR)


async def _sample_each_second(connection: asyncpg.Connection, server: int, worker: int, began: float, seconds: int) -> list[Sample]:
    samples: list[Sample] = []
    for second in range(1, seconds + 1):
        await asyncio.sleep(max(0.0, began + second - time.monotonic()))
        [(dead_rows, dead_jobs, size, age)] = await connection.fetch(_SAMPLE)
        samples.append(Sample(second, dead_rows, dead_jobs, size, age, cpu_of(worker), cpu_of_family(server)))
        if second % 60 == 0:
            print(f"minute {second // 60}: {samples[-1].dead_rows:,} dead rows", file=sys.stderr, flush=True)
    return samples


@asynccontextmanager
async def _connected(server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(server.dsn)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
