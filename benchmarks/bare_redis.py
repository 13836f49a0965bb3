"""The bare loop on Redis: one script settles a batch of jobs and takes the next. See `bare_loop`.

A job that is taken is in a hash with its deadline, so a killed worker's jobs are not lost.

`python -m benchmarks.bare_redis drain URL JOBS BATCH` and `... wake URL TIMES` are the worker processes, which report on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import msgpack
import redis
from redis.asyncio import Redis
from redis.asyncio.connection import Connection

from benchmarks.bare_loop import STAMP, Loop, SettleAndTake, Taken, note_of, pack
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

BATCH: Final = 1_000
PAYLOAD: Final = b"\x80" * 40


def add(url: str, jobs: int) -> float:
    """Add jobs by the thousand. Return jobs per second."""
    with redis.Redis.from_url(url) as client:
        script = client.register_script(ADD)
        began = time.perf_counter()
        for start in range(0, jobs, BATCH):
            script(args=[pack([part for i in range(min(BATCH, jobs - start)) for part in (os.urandom(16), note_of(start + i))])])
        return jobs / (time.perf_counter() - began)


@asynccontextmanager
async def adding(url: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yield a function that adds a job, which returns its start time, and sends a nudge."""
    async with Redis.from_url(url, protocol=2) as client:
        script = client.register_script(ADD)
        yield lambda: script(args=[pack([os.urandom(16), STAMP])])


@asynccontextmanager
async def commands(url: str, callers: int) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yield a function that sends one command through the driver's client."""
    async with Redis.from_url(url, protocol=2) as client:
        yield lambda: client.rpush("waiting", PAYLOAD)


@asynccontextmanager
async def lone_command(url: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yield a function that does the least that the driver can do: pack and send a command, and parse its reply."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = Connection(host=parts.hostname, port=parts.port, protocol=2)
    connect: Any = connection.connect  # untyped in some versions of the driver
    await connect()

    async def send() -> None:
        await connection.send_command("RPUSH", "waiting", PAYLOAD, check_health=False)
        await connection.read_response(disable_decoding=True)

    try:
        yield send
    finally:
        await connection.disconnect()


# --- the worker process ----------------------------------------------------------------------------------------


def _taking(client: Redis) -> SettleAndTake:
    script = client.register_script(SETTLE_AND_TAKE)

    async def settle_and_take(settled: list[bytes], number: int, until: int) -> Taken:
        taken = msgpack.unpackb(await script(args=[pack([settled, number, until])]), raw=True)
        return list(zip(*taken, strict=True)) if taken else []

    return settle_and_take


async def drain(url: str, jobs: int, batch: int) -> dict[str, float]:
    async with Redis.from_url(url, protocol=2) as client:
        await client.ping()
        return await Loop(_taking(client), batch).drain(jobs)


async def wake(url: str, times: int) -> list[float]:
    """Run jobs when a message is published. Return the times of the jobs' first lines."""
    async with Redis.from_url(url, protocol=2) as client, client.pubsub(ignore_subscribe_messages=True) as told:
        await told.subscribe("nudges")
        await told.get_message(timeout=5.0)
        return await Loop(_taking(client), 100).wake(told.listen(), times)


def main(what: str, url: str, *numbers: str) -> None:
    work: Any = {"drain": drain, "wake": wake}[what]
    print(json.dumps(run_in_fastest_loop(work(url, *map(int, numbers)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
