"""Sending to Redis from one process: many callers of delay(), one, and enqueue() in bulk."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import Connection

from benchmarks import bare_redis
from benchmarks.loops import run_in_fastest_loop
from benchmarks.processes import using
from benchmarks.report import Row, in_turn
from benchmarks.servers import HOST, RedisServer
from benchmarks.tasks import noop
from taskflow import enqueue

CALLERS: Final = 32
CALLS: Final = 20_000
BULK: Final = 100_000
LONE: Final = 2_000
PAYLOAD: Final = b"\x80" * 40


def sendings(repeats: int) -> list[Row]:
    """Beside: as many callers with a command each; jobs by the thousand in a script; one command over a bare connection, or a client."""
    return [
        *in_turn(f"{CALLERS} callers of delay()", repeats, _ran(_callers), _ran(_bare_callers)),
        *in_turn(f"enqueue() of {BULK:,}", repeats, _ran(_bulk), _bare_bulk),
        *in_turn("a lone delay()", repeats, _ran(_lone), _ran(_bare_lone)),
        *in_turn("a lone delay() beside the driver's client", repeats, _ran(_lone), _ran(_client_lone)),
    ]


def _ran(measurement: Callable[[str], Awaitable[Mapping[str, float]]]) -> Callable[[], Mapping[str, float]]:
    async def with_server() -> Mapping[str, float]:
        with RedisServer() as server:
            return await measurement(server.url)

    return lambda: run_in_fastest_loop(with_server())


async def _callers(url: str) -> Mapping[str, float]:
    async with using(url):
        return await _by_many(noop.delay)


async def _bare_callers(url: str) -> Mapping[str, float]:
    async with Redis.from_url(url, protocol=2) as client:
        return await _by_many(lambda: client.rpush("waiting", PAYLOAD))


async def _by_many(send: Callable[[], Awaitable[object]]) -> Mapping[str, float]:
    async def caller() -> None:
        for _ in range(CALLS // CALLERS):
            await send()

    await send()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return {"jobs/s": CALLS / (time.perf_counter() - began), "CPU µs/job": 1e6 * (time.process_time() - cpu) / CALLS}


async def _bulk(url: str) -> Mapping[str, float]:
    async with using(url):
        await noop.delay()
        began, cpu = time.perf_counter(), time.process_time()
        await enqueue(noop.bind() for _ in range(BULK))
        return {"jobs/s": BULK / (time.perf_counter() - began), "CPU µs/job": 1e6 * (time.process_time() - cpu) / BULK}


def _bare_bulk() -> Mapping[str, float]:
    with RedisServer() as server:
        return {"jobs/s": bare_redis.add(server.client, BULK, 1_000)}


async def _lone(url: str) -> Mapping[str, float]:
    async with using(url):
        return await _one_by_one(noop.delay)


async def _bare_lone(url: str) -> Mapping[str, float]:
    """The least that the driver can do: a command packed, sent, and its reply parsed."""
    connection = Connection(host=HOST, port=int(url.rpartition(":")[2].partition("/")[0]), protocol=2)
    connect: Any = connection.connect  # untyped in some versions of the driver
    await connect()

    async def send() -> None:
        await connection.send_command("RPUSH", "waiting", PAYLOAD, check_health=False)
        await connection.read_response(disable_decoding=True)

    try:
        return await _one_by_one(send)
    finally:
        await connection.disconnect()


async def _client_lone(url: str) -> Mapping[str, float]:
    async with Redis.from_url(url, protocol=2) as client:
        return await _one_by_one(lambda: client.rpush("waiting", PAYLOAD))


async def _one_by_one(send: Callable[[], Awaitable[object]]) -> Mapping[str, float]:
    taken: list[float] = []
    for _ in range(LONE):
        began = time.perf_counter()
        await send()
        taken.append(1e6 * (time.perf_counter() - began))
    return {"p50 µs": statistics.median(taken)}
