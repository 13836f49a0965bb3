"""procrastinate through psycopg."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import procrastinate

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, Sending, in_fastest_loop, run_async

CALLERS = 32

application = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL, min_size=4, max_size=CALLERS))


@application.task(name="note")
async def note(number: int) -> None:
    mark(number)


class ProcrastinateSending(Sending):
    async def set_up(self) -> None:
        await application.schema_manager.apply_schema_async()

    async def send(self, number: int) -> object:
        return await note.defer_async(number=number)

    async def send_many(self, numbers: Sequence[int]) -> object:
        return await note.batch_defer_async(*({"number": number} for number in numbers))

    async def send_at(self, number: int, instant: float) -> object:
        return await note.configure(schedule_at=datetime.fromtimestamp(instant, UTC)).defer_async(number=number)


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    async with application.open_async():
        yield ProcrastinateSending()


def work(concurrency: int) -> None:
    async def start() -> None:
        async with application.open_async():
            await application.run_worker_async(concurrency=concurrency)

    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
    in_fastest_loop(start())


if __name__ == "__main__":
    run_async(sending, work)
