"""The bare loop in memory: a deque of packed arguments, a plain task for each job, a maximum number of tasks, and packed results."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import msgpack


async def noop(arguments: object) -> object:
    return arguments


async def drain(jobs: int, concurrency: int) -> float:
    """Run the jobs. Return jobs per second."""
    payload = msgpack.packb({"x": 1}) or b""
    waiting = deque([payload] * jobs)
    results: list[bytes | None] = []

    async def run(packed: bytes) -> None:
        results.append(msgpack.packb(await noop(msgpack.unpackb(packed))))

    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    while waiting:
        batch = [loop.create_task(run(waiting.popleft())) for _ in range(min(concurrency, len(waiting)))]
        for task in batch:
            await task
    rate = jobs / (time.perf_counter() - began)
    if len(results) != jobs:
        raise AssertionError(f"{len(results)} of {jobs} jobs were run")
    return rate


async def wake_up(times: int) -> list[float]:
    """Return the seconds from setting an event to the first line of the task that waits for it."""
    taken: list[float] = []
    event = asyncio.Event()
    began = 0.0

    async def waiter() -> None:
        for _ in range(times):
            await event.wait()
            event.clear()
            taken.append(time.perf_counter() - began)

    waiting = asyncio.create_task(waiter())
    for _ in range(times):
        await asyncio.sleep(0.002)
        began = time.perf_counter()
        event.set()
    await waiting
    return taken


def enqueue(jobs: int) -> float:
    """Pack arguments and append them to a deque. Return jobs per second."""
    waiting: deque[bytes | None] = deque()
    began = time.perf_counter()
    for number in range(jobs):
        waiting.append(msgpack.packb({"x": number}))
    return jobs / (time.perf_counter() - began)


async def send(jobs: int, callers: int) -> float:
    """Send from `callers` tasks, each of which yields to the others after each job. Return jobs per second."""
    waiting: deque[bytes | None] = deque()

    async def caller() -> None:
        for number in range(jobs // callers):
            waiting.append(msgpack.packb({"x": number}))
            await asyncio.sleep(0)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(waiting) / (time.perf_counter() - began)
