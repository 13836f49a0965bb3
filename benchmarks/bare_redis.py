"""The bare loop on Redis: the least that any worker there must do, to compare with.

One script that settles up to so many jobs and takes up to so many, the next one under way while a batch runs; msgpack; a plain task per
job with its context, a table of deadlines, error handling and the packing of its result. What is taken stands in a hash with its
deadline, so a killed worker's jobs are not lost. No fences, sessions, keys, priorities, counts, retries, wake-ups or keeping.

`python -m benchmarks.bare_redis drain URL JOBS BATCH` and `... wake URL TIMES` are the worker processes, which tell on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final

import msgpack
import redis
from redis.asyncio import Redis

from benchmarks.loops import run_in_fastest_loop

SETTLE_AND_TAKE: Final = """
local settled, number, deadline = unpack(cmsgpack.unpack(ARGV[1]))
if #settled > 0 then
  local ids, results, payloads = {}, {}, {}
  for i = 1, #settled, 2 do
    ids[#ids + 1] = settled[i]
    results[i], results[i + 1] = 'r:' .. settled[i], settled[i + 1]
    payloads[#payloads + 1] = 'j:' .. settled[i]
  end
  redis.call('HDEL', 'running', unpack(ids))
  redis.call('MSET', unpack(results))
  redis.call('UNLINK', unpack(payloads))
end
local ids = redis.call('LPOP', 'waiting', number)
if not ids then
  return cmsgpack.pack({})
end
local keys, running = {}, {}
for i, id in ipairs(ids) do
  keys[i] = 'j:' .. id
  running[2 * i - 1], running[2 * i] = id, deadline
end
redis.call('HSET', 'running', unpack(running))
return cmsgpack.pack({ ids, redis.call('MGET', unpack(keys)) })
"""

ADD: Final = """
local jobs, keys, ids = cmsgpack.unpack(ARGV[1]), {}, {}
for i = 1, #jobs, 2 do
  keys[i], keys[i + 1] = 'j:' .. jobs[i], jobs[i + 1]
  ids[#ids + 1] = jobs[i]
end
redis.call('MSET', unpack(keys))
redis.call('RPUSH', 'waiting', unpack(ids))
redis.call('PUBLISH', 'nudges', '')
"""

TIMEOUT: Final = 60.0


async def noop() -> None:
    return None


async def stamp() -> float:
    return time.monotonic()


JOBS: Final[dict[str, Callable[..., Coroutine[Any, Any, Any]]]] = {"noop": noop, "stamp": stamp}

running_job: Final[ContextVar[bytes]] = ContextVar("running_job")


def pack(value: object) -> bytes:
    packed = msgpack.packb(value, use_bin_type=False)
    assert packed is not None
    return bytes(packed)


def add(client: redis.Redis, jobs: int, batch: int, payload: bytes = pack(["noop", []])) -> float:
    """Jobs per second, added in batches."""
    script = client.register_script(ADD)
    began = time.perf_counter()
    for start in range(0, jobs, batch):
        script(args=[pack([part for _ in range(min(batch, jobs - start)) for part in (os.urandom(16), payload)])])
    return jobs / (time.perf_counter() - began)


class Loop:
    """A worker."""

    def __init__(self, client: Redis, batch: int) -> None:
        self._script = client.register_script(SETTLE_AND_TAKE)
        self._batch = batch
        self._settled: list[bytes] = []
        self._deadlines: dict[bytes, float] = {}
        self.done = 0

    async def take(self) -> list[tuple[bytes, bytes]]:
        """Settles what has ended meanwhile."""
        settled, self._settled = self._settled, []
        reply = await self._script(args=[pack([settled, self._batch, int(time.time() + TIMEOUT)])])
        taken = msgpack.unpackb(reply, raw=True)
        return list(zip(*taken, strict=True)) if taken else []

    async def run(self, taken: list[tuple[bytes, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TIMEOUT
        tasks = []
        for job_id, payload in taken:
            self._deadlines[job_id] = deadline
            tasks.append(loop.create_task(self._run_one(job_id, payload)))
        for task in tasks:
            await task
        self.done += len(taken)

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


async def drain(url: str, jobs: int, batch: int) -> dict[str, float]:
    async with Redis.from_url(url, protocol=2) as client:
        worker = Loop(client, batch)
        await client.ping()
        began, cpu = time.perf_counter(), time.process_time()
        taken = await worker.take()
        while taken:
            under_way = asyncio.create_task(worker.take())
            await asyncio.sleep(0)
            await worker.run(taken)
            taken = await under_way
        await worker.take()
        spent = time.process_time() - cpu
        rate = worker.done / (time.perf_counter() - began)
    if worker.done != jobs:
        raise AssertionError(f"{worker.done} of {jobs} jobs were run")
    return {"rate": rate, "cpu": 1e6 * spent / jobs}


async def wake(url: str, times: int) -> list[float]:
    """The bare notification loop: told of each job, it takes and runs it. The instants of their first lines."""
    stamps: list[float] = []
    async with Redis.from_url(url, protocol=2) as client, client.pubsub(ignore_subscribe_messages=True) as told:
        worker = Loop(client, 100)
        await worker.take()
        await told.subscribe("nudges")
        await told.get_message(timeout=5.0)
        print("ready", flush=True)
        async for _ in told.listen():
            for job_id, payload in await worker.take():
                stamps.append(time.monotonic())
                await worker.run([(job_id, payload)])
            if len(stamps) >= times:
                return stamps
    return stamps


def main(what: str, url: str, *numbers: str) -> None:
    work: Any = {"drain": drain, "wake": wake}[what]
    print(json.dumps(run_in_fastest_loop(work(url, *map(int, numbers)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
