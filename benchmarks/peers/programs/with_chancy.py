"""chancy, with jobs in the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from chancy import Chancy, Queue, Worker, job

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, in_fastest_loop, run_async

CALLERS = 32
CONCURRENCY = 100


@job(queue="default")
async def note(*, number: int) -> None:
    mark(number)


class ChancySending(Sending):
    def __init__(self, application: Any) -> None:
        self._application = application

    async def set_up(self) -> None:
        await self._application.migrate()
        await self._application.declare(_queue(CONCURRENCY), upsert=True)

    async def send(self, number: int) -> object:
        return await self._application.push(note.job.with_kwargs(number=number))

    async def send_many(self, numbers: Sequence[int]) -> object:
        jobs = [note.job.with_kwargs(number=number) for number in numbers]
        return [references async for references in self._application.push_many(jobs)]

    async def ask(self, number: int) -> object:
        return await self._application.wait_for_job(await self.send(number), interval=1, timeout=10)

    async def send_at(self, number: int, instant: float) -> object:
        planned = note.job.with_kwargs(number=number).with_scheduled_at(datetime.fromtimestamp(instant, UTC))
        return await self._application.push(planned)


def _queue(concurrency: int) -> Any:
    return Queue("default", concurrency=concurrency, executor=Chancy.Executor.Async, eager_polling=True)


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    async with Chancy(URL, min_connection_pool_size=CALLERS, max_connection_pool_size=CALLERS) as application:
        yield ChancySending(application)


def work(concurrency: int) -> None:
    async def start() -> None:
        async with Chancy(URL) as application:
            await application.declare(_queue(concurrency), upsert=True)
            async with Worker(application) as worker:
                await worker.wait_for_shutdown()

    in_fastest_loop(start())


if __name__ == "__main__":
    run_async(sending, work)
