"""pgqueuer through asyncpg."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.core.completion import CompletionWatcher
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, in_fastest_loop, run_async

CALLERS = 32


class PgqueuerSending(Sending):
    def __init__(self, driver: Any) -> None:
        self._queries = Queries(driver)
        self._watcher = CompletionWatcher(driver, queries=self._queries)
        self._is_watching = False
        self.closing = AsyncExitStack()

    async def set_up(self) -> None:
        await self._queries.install()

    async def send(self, number: int) -> object:
        return await self._queries.enqueue("note", str(number).encode())

    async def send_many(self, numbers: Sequence[int]) -> object:
        payloads = [str(number).encode() for number in numbers]
        return await self._queries.enqueue(["note"] * len(numbers), payloads, [0] * len(numbers))

    async def ask(self, number: int) -> object:
        """Send a job and wait for its result through a watcher that all calls share. The first call starts it."""
        if not self._is_watching:
            self._is_watching = True
            await self.closing.enter_async_context(self._watcher)
        [job] = await self._queries.enqueue("note", str(number).encode())
        return await self._watcher.wait_for(job)

    async def send_at(self, number: int, instant: float) -> object:
        return await self._queries.enqueue("note", str(number).encode(), execute_after=timedelta(seconds=instant - time.time()))


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    async with asyncpg.create_pool(URL, min_size=CALLERS, max_size=CALLERS) as pool, AsyncpgPoolDriver(pool) as driver:
        sending = PgqueuerSending(driver)
        async with sending.closing:
            yield sending


def work(concurrency: int) -> None:
    async def start() -> None:
        connection = await asyncpg.connect(URL)
        application = PgQueuer(AsyncpgDriver(connection))

        @application.entrypoint("note")
        async def note(job: Any) -> None:
            mark(int(job.payload))

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, application.shutdown.set)
        await application.run(batch_size=concurrency // 2, max_concurrent_tasks=concurrency)

    in_fastest_loop(start())


if __name__ == "__main__":
    run_async(sending, work)
