"""arq."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import arq
from arq.connections import RedisSettings

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, in_fastest_loop, run_async


async def note(context: Any, number: int) -> None:
    mark(number)


class ArqSending(Sending):
    def __init__(self, pool: arq.ArqRedis) -> None:
        self._pool = pool

    async def send(self, number: int) -> object:
        return await self._pool.enqueue_job("note", number)

    async def send_many(self, numbers: Sequence[int]) -> object:
        """Send jobs concurrently, because arq has no bulk call."""
        return await asyncio.gather(*(self.send(number) for number in numbers))

    async def ask(self, number: int) -> object:
        job = await self._pool.enqueue_job("note", number)
        assert job is not None
        return await job.result(timeout=10)

    async def send_at(self, number: int, instant: float) -> object:
        return await self._pool.enqueue_job("note", number, _defer_until=datetime.fromtimestamp(instant, UTC))


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    pool = await arq.create_pool(RedisSettings.from_dsn(URL))
    try:
        yield ArqSending(pool)
    finally:
        await pool.aclose()


def work(concurrency: int) -> None:
    async def start() -> None:
        settings = RedisSettings.from_dsn(URL)
        await arq.Worker(functions=[note], redis_settings=settings, max_jobs=concurrency, handle_signals=True).async_run()

    in_fastest_loop(start())


if __name__ == "__main__":
    run_async(sending, work)
