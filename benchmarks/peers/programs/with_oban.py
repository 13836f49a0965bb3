"""oban for Python."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from oban import Oban, job
from oban.schema import install

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, in_fastest_loop, run_async

CALLERS = 32


@job(queue="default")
async def note(number: int) -> None:
    mark(number)


class ObanSending(Sending):
    def __init__(self, oban: Any, pool: Any) -> None:
        self._oban = oban
        self._pool = pool

    async def set_up(self) -> None:
        await install(self._pool)

    async def send(self, number: int) -> object:
        return await self._oban.enqueue(note.new(number))

    async def send_many(self, numbers: Sequence[int]) -> object:
        return await self._oban.enqueue_many([note.new(number) for number in numbers])

    async def send_at(self, number: int, instant: float) -> object:
        planned = note.new(number)
        planned.scheduled_at = datetime.fromtimestamp(instant, UTC)
        planned.state = "scheduled"
        return await self._oban.enqueue(planned)


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    pool = await Oban.create_pool(dsn=URL, min_size=CALLERS, max_size=CALLERS)
    try:
        yield ObanSending(Oban(pool=pool), pool)
    finally:
        await pool.close()


def work(concurrency: int) -> None:
    async def start() -> None:
        pool = await Oban.create_pool(dsn=URL, min_size=2, max_size=10)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        async with Oban(pool=pool, queues={"default": concurrency}):
            await ended.wait()
        await pool.close()

    in_fastest_loop(start())


if __name__ == "__main__":
    run_async(sending, work)
