"""saq, on Redis and on Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import saq

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, in_fastest_loop, run_async


async def note(context: Any, *, number: int) -> None:
    mark(number)


class SaqSending(Sending):
    def __init__(self, queue: saq.Queue) -> None:
        self._queue = queue

    async def send(self, number: int) -> object:
        return await self._queue.enqueue("note", number=number)

    async def send_many(self, numbers: Sequence[int]) -> object:
        """Send jobs concurrently, as saq's documentation does, because there is no bulk call."""
        return await asyncio.gather(*(self.send(number) for number in numbers))

    async def ask(self, number: int) -> object:
        return await self._queue.apply("note", number=number)

    async def send_at(self, number: int, instant: float) -> object:
        return await self._queue.enqueue("note", number=number, scheduled=instant)


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    queue = saq.Queue.from_url(URL)
    await queue.connect()
    try:
        yield SaqSending(queue)
    finally:
        await queue.disconnect()


def work(concurrency: int) -> None:
    async def start() -> None:
        queue = saq.Queue.from_url(URL)
        await queue.connect()
        await saq.Worker(queue, functions=[("note", note)], concurrency=concurrency).start()

    in_fastest_loop(start())


if __name__ == "__main__":
    run_async(sending, work)
