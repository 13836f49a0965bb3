"""streaq."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import streaq

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, run_async

CONCURRENCY = 100

worker = streaq.Worker(redis_url=URL, concurrency=CONCURRENCY, anyio_kwargs={"use_uvloop": True})


@worker.task(name="note")
async def note(number: int) -> None:
    mark(number)


class StreaqSending(Sending):
    async def send(self, number: int) -> object:
        return await note.enqueue(number)

    async def send_many(self, numbers: Sequence[int]) -> object:
        return await worker.enqueue_many([note.enqueue(number) for number in numbers])

    async def ask(self, number: int) -> object:
        task = await note.enqueue(number)
        return await task.result(timeout=10)

    async def send_at(self, number: int, instant: float) -> object:
        return await note.enqueue(number).start(schedule=datetime.fromtimestamp(instant, UTC))


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    async with worker:
        yield StreaqSending()


def work(concurrency: int) -> None:
    worker.concurrency = concurrency
    worker.run_sync()


if __name__ == "__main__":
    run_async(sending, work)
