"""Jobs that record their start in a file, which also shows the runs of workers that were killed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from taskflow import JobContext, job

TAKES: Final = 0.2
"""The duration of a run of `take`, in seconds."""


@job(name="benchmarks.hold")
async def hold(ctx: JobContext, ledger: str, number: int) -> None:
    """Run until the worker is killed; the next run ends at once."""
    _note(ledger, number, ctx.epoch)
    if ctx.epoch == 1:
        await asyncio.Event().wait()


@job(name="benchmarks.take", max_attempts=1)
async def take(ctx: JobContext, ledger: str, number: int) -> None:
    _note(ledger, number, ctx.epoch)
    await asyncio.sleep(TAKES)


class Began(NamedTuple):
    """The start of a run, with its time on the monotonic clock, which all processes of a machine share."""

    number: int
    pid: int
    epoch: int
    at: float


def _note(ledger: str, number: int, epoch: int) -> None:
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{number} {os.getpid()} {epoch} {time.monotonic()}\n".encode())
    os.close(file)


def read(ledger: Path) -> list[Began]:
    """Return the starts in the order in which they were written."""
    lines = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [Began(int(number), int(pid), int(epoch), float(at)) for number, pid, epoch, at in lines]


async def until(ledger: Path, holds: Callable[[list[Began]], bool], within: float) -> list[Began]:
    """Wait until the condition is true for the starts in the file, and return them. Raises TimeoutError after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            if holds(began := read(ledger)):
                return began
            await asyncio.sleep(0.1)
