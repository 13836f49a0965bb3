"""A process that sends jobs at a fixed rate: `python -m benchmarks.steady URL RATE SECONDS FILE`.

Each job carries the time at which it was due to be sent, so its wait includes a slow enqueue. Each line of the file is an enqueue: the
time of its answer on the monotonic clock, its duration in seconds, and the number of jobs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from benchmarks.loops import run_in_fastest_loop
from benchmarks.processes import using
from benchmarks.tasks import waited
from taskflow import enqueue

SEND_INTERVAL: Final = 0.01
"""Seconds between two enqueues. Jobs that fall due in between are sent together."""

MAX_WAITING: Final = 1_000


@dataclass(frozen=True)
class Sending:
    """An enqueue: when it was answered, how many seconds it took, and the number of jobs."""

    at: float
    took: float
    jobs: int


async def send(url: str, rate: float, seconds: float, file: TextIO) -> None:
    """Send the jobs. Print the start time, so that the parent process knows it."""
    async with using(url) as broker:
        await broker.admin.queues()  # opens the connection
        began, sent = time.monotonic(), 0
        print(began, flush=True)
        while sent < int(rate * seconds):
            now = time.monotonic()
            due = min(int((min(now - began, seconds)) * rate), sent + MAX_WAITING)
            if due > sent:
                await enqueue(waited.bind(began + number / rate) for number in range(sent + 1, due + 1))
                answered = time.monotonic()
                file.write(f"{answered:.6f},{answered - now:.6f},{due - sent}\n")
                sent = due
            await asyncio.sleep(max(0.0, now + SEND_INTERVAL - time.monotonic()))


def read_sendings(path: Path) -> list[Sending]:
    with path.open() as lines:
        parts = [line.split(",") for line in lines if line.endswith("\n")]
    return [Sending(float(at), float(took), int(jobs)) for at, took, jobs in parts]


def main(url: str, rate: str, seconds: str, path: str) -> None:
    with Path(path).open("w", buffering=1) as file:
        run_in_fastest_loop(send(url, float(rate), float(seconds), file))


if __name__ == "__main__":
    main(*sys.argv[1:])
