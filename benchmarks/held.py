"""Jobs that write down when they begin, in a file: what a worker ran that was killed stands there too."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from taskflow import JobContext, job

TAKES: Final = 0.2
"""Seconds of a run of `take`."""


@job(name="benchmarks.hold")
async def hold(ctx: JobContext, ledger: str, number: int) -> None:
    """Runs until its worker is killed; the next run ends at once."""
    _note(ledger, number, ctx.epoch)
    if ctx.epoch == 1:
        await asyncio.Event().wait()


@job(name="benchmarks.take", max_attempts=1)
async def take(ctx: JobContext, ledger: str, number: int) -> None:
    _note(ledger, number, ctx.epoch)
    await asyncio.sleep(TAKES)


class Began(NamedTuple):
    """A run's first line, at an instant of the monotonic clock, which all processes of a machine share."""

    number: int
    pid: int
    epoch: int
    at: float


def _note(ledger: str, number: int, epoch: int) -> None:
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{number} {os.getpid()} {epoch} {time.monotonic()}\n".encode())
    os.close(file)


def read(ledger: Path) -> list[Began]:
    """In the order of writing."""
    lines = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [Began(int(number), int(pid), int(epoch), float(at)) for number, pid, epoch, at in lines]


async def until(ledger: Path, holds: Callable[[list[Began]], bool], within: float) -> list[Began]:
    """What it says once that holds of it."""
    async with asyncio.timeout(within):
        while True:
            if holds(began := read(ledger)):
                return began
            await asyncio.sleep(0.1)
