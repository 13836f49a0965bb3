"""taskiq with taskiq-redis: a stream with acknowledgements, and results if the variant is "results"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.marks import mark
from benchmarks.peers.programs.contract import URL, VARIANT, CannotError, Sending, run_async, work_by

broker = RedisStreamBroker(URL)
if VARIANT == "results":
    broker = broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=300))


@broker.task(task_name="note")
async def note(number: int) -> None:
    mark(number)


class TaskiqSending(Sending):
    async def send(self, number: int) -> object:
        return await note.kiq(number)

    async def send_many(self, numbers: Sequence[int]) -> object:
        """Send jobs concurrently, because taskiq has no bulk call."""
        return await asyncio.gather(*(self.send(number) for number in numbers))

    async def ask(self, number: int) -> object:
        if VARIANT != "results":
            raise CannotError("wait for a result without a result backend")
        task = await note.kiq(number)
        return await task.wait_result(check_interval=0.001, timeout=10)


@asynccontextmanager
async def sending() -> AsyncIterator[Sending]:
    await broker.startup()
    try:
        yield TaskiqSending()
    finally:
        await broker.shutdown()


def work(concurrency: int) -> None:
    flags = ["--workers", "1", "--max-async-tasks", str(concurrency), "--log-level", "ERROR"]
    work_by("taskiq", "worker", *flags, "benchmarks.peers.programs.with_taskiq:broker")


if __name__ == "__main__":
    run_async(sending, work)
