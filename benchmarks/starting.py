"""How fast a worker process starts: from its launch to the first job's first line, beside the import of its driver."""

from __future__ import annotations

import compileall
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.marks import A_DOUBLE, environment_of, marks_of
from benchmarks.options import Options
from benchmarks.processes import ROOT, python, using
from benchmarks.report import Measured, Row, in_turn
from benchmarks.stores import Store
from benchmarks.tasks import note
from taskflow import enqueue

DRIVERS: Final = {"redis": "redis.asyncio", "postgres": "asyncpg"}
NOTHING: Final = "an interpreter"
ITS_DRIVER: Final = "its driver's import"
TIMEOUT: Final = 30.0


def starts(store: Store, options: Options) -> list[Row]:
    """Measure a worker's start beside `python -c "import DRIVER, anyio"`, which every worker has to do."""
    _compile()
    driver = DRIVERS[store.name]
    bare = partial(_ran, [python(), "-c", f"import {driver}, anyio"])
    return in_turn(
        f"launch to first job (beside: import {driver}, anyio)",
        options.repeats,
        partial(_first_job, store),
        bare,
        options.peers.launches(store),
        part="start",
        beside=ITS_DRIVER,
    )


def commands(options: Options) -> list[Row]:
    """Measure commands beside an interpreter that does nothing."""
    _compile()
    bare = partial(_ran, [python(), "-c", "pass"])
    return [
        *in_turn(
            "taskflow --help",
            options.repeats,
            partial(_ran, [python(), "-m", "taskflow", "--help"]),
            bare,
            part="help",
            beside=NOTHING,
        ),
        *in_turn(
            "import taskflow",
            options.repeats,
            partial(_ran, [python(), "-c", "import taskflow"]),
            bare,
            part="import",
            beside=NOTHING,
        ),
    ]


def _compile() -> None:
    """Compile the packages, as an installation does. A checkout may be configured to write no bytecode."""
    for package in ("taskflow", "benchmarks"):
        compileall.compile_dir(ROOT / package, quiet=1)


def _ran(command: Sequence[str]) -> Measured:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT)
    return {"s": time.perf_counter() - began}


def _first_job(store: Store) -> Measured:
    with store.start() as server, marks_of(A_DOUBLE) as marks:
        run_in_fastest_loop(_queue_one(server.url))
        command = [python(), "-m", "taskflow", "worker", "benchmarks.tasks", "--broker", server.url, "--log-level", "warning"]
        with _launched(command, environment_of(marks)) as began:
            give_up_at = began + TIMEOUT
            while not marks.ran and time.monotonic() < give_up_at:
                time.sleep(0.001)
        return {"s": max(marks.stamps()) - began}


async def _queue_one(url: str) -> None:
    async with using(url):
        await enqueue([note.bind(0)])


@contextmanager
def _launched(command: Sequence[str], environment: dict[str, str]) -> Iterator[float]:
    """Start a process. Yield the time just before the start."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        yield began
    finally:
        process.terminate()
        process.wait(TIMEOUT)
