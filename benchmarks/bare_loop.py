"""The bare loop, which does the least that any worker must do.

It takes the next batch of jobs while a batch runs, and settles ended jobs in the same call. It uses msgpack, a plain task per job with a
context, a table of deadlines, error handling and packed results. It has no fences, sessions, keys, priorities, counts, retries or
wake-ups, and keeps no ended jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final

import msgpack

from benchmarks.marks import mark

TIMEOUT: Final = 60.0

Taken = list[tuple[bytes, bytes]]
"""The ids and payloads of jobs."""

SettleAndTake = Callable[[list[bytes], int, int], Awaitable[Taken]]
"""Receives ended jobs (id, result, id, result, ...), the maximum number of jobs to take, and their deadline in seconds since 1970."""


async def stamp() -> float:
    return time.monotonic()


async def note(number: int) -> None:
    mark(number)


JOBS: Final[dict[str, Callable[..., Coroutine[Any, Any, Any]]]] = {"stamp": stamp, "note": note}

running_job: Final[ContextVar[bytes]] = ContextVar("running_job")


def pack(value: object) -> bytes:
    packed = msgpack.packb(value, use_bin_type=False)
    assert packed is not None
    return bytes(packed)


def note_of(number: int) -> bytes:
    return pack(["note", [number]])


STAMP: Final = pack(["stamp", []])


class Loop:
    """A worker that settles and takes jobs in batches."""

    def __init__(self, settle_and_take: SettleAndTake, batch: int) -> None:
        self._settle_and_take = settle_and_take
        self._batch = batch
        self._settled: list[bytes] = []
        self._deadlines: dict[bytes, float] = {}
        self._done = 0

    async def drain(self, jobs: int) -> dict[str, float]:
        """Run all jobs. Return the rate, and the CPU time per job in microseconds."""
        began, cpu = time.perf_counter(), time.process_time()
        taken = await self._take()
        while taken:
            under_way = asyncio.create_task(self._take())
            await asyncio.sleep(0)
            await self._run(taken)
            taken = await under_way
        await self._take()
        spent = time.process_time() - cpu
        rate = self._done / (time.perf_counter() - began)
        if self._done != jobs:
            raise AssertionError(f"{self._done} of {jobs} jobs were run")
        return {"rate": rate, "cpu": 1e6 * spent / jobs}

    async def wake(self, nudges: AsyncIterator[object], times: int) -> list[float]:
        """Take and run a job whenever a nudge arrives: the bare notification loop. Return the times of the jobs' first lines."""
        stamps: list[float] = []
        await self._take()
        print("ready", flush=True)
        async for _ in nudges:
            for job_id, payload in await self._take():
                stamps.append(time.monotonic())
                await self._run([(job_id, payload)])
            if len(stamps) >= times:
                break
        return stamps

    async def _take(self) -> Taken:
        settled, self._settled = self._settled, []
        return await self._settle_and_take(settled, self._batch, int(time.time() + TIMEOUT))

    async def _run(self, taken: Taken) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TIMEOUT
        tasks = []
        for job_id, payload in taken:
            self._deadlines[job_id] = deadline
            tasks.append(loop.create_task(self._run_one(job_id, payload)))
        for task in tasks:
            await task
        self._done += len(taken)

    async def _run_one(self, job_id: bytes, payload: bytes) -> None:
        token = running_job.set(job_id)
        try:
            name, arguments = msgpack.unpackb(payload)
            result = pack([True, await JOBS[name](*arguments)])
        except Exception as error:
            result = pack([False, repr(error)])
        finally:
            del self._deadlines[job_id]
            running_job.reset(token)
        self._settled += (job_id, result)
