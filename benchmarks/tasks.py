"""The jobs that are measured."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

from benchmarks.marks import Marks, mark
from taskflow import Job, job


@job(name="benchmarks.noop")
async def noop() -> None:
    return None


@job(name="benchmarks.stamp")
async def stamp() -> float:
    """Return the time of its first line on the monotonic clock, which all processes of a machine share."""
    return time.monotonic()


@job(name="benchmarks.wall")
async def wall() -> float:
    """Return the time of its first line in seconds since 1970."""
    return time.time()


@job(name="benchmarks.waited")
async def waited(since: float) -> float:
    """Return the seconds from `since`, on the monotonic clock, to its first line."""
    return time.monotonic() - since


@job(name="benchmarks.note")
async def note(number: int) -> None:
    """Record that it ran."""
    mark(number)


@job(name="benchmarks.record_in_thread")
def record_in_thread(number: int) -> None:
    mark(number)


@job(name="benchmarks.sleep")
async def sleep(number: int, seconds: float) -> None:
    mark(number)
    await asyncio.sleep(seconds)


@job(name="benchmarks.swallow")
async def swallow(number: int, data: bytes) -> None:
    mark(number)


@job(name="benchmarks.give")
async def give(number: int, size: int) -> bytes:
    mark(number)
    return _DATA[:size]


_DATA: Final = random.Random(0).randbytes(10_000)


def stamp_into(stamps: list[float]) -> Job[[], None]:
    """Return a job for a worker in this process that appends the time of its first line to the list."""

    @job(name="benchmarks.stamp_into")
    async def stamped() -> None:
        stamps.append(time.monotonic())

    return stamped


def record_into(marks: Marks) -> Job[[int], None]:
    """Return a job for a worker in this process that records that it ran."""

    @job(name="benchmarks.record_into")
    async def noted(number: int) -> None:
        marks.mark(number)

    return noted
