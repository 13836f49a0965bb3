"""A worker keeps nothing of the runs that have ended: neither their contexts nor, in them, their payloads."""

from __future__ import annotations

import asyncio
import gc

from taskflow import JobContext, Worker, job
from tests.worker.scene import a_faulty_broker


@job(name="tests.contexts.with_timeout", timeout=3_600)
async def with_timeout() -> None:
    await asyncio.sleep(0)


def contexts(name: str) -> list[JobContext]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is JobContext and each.job_name == name]


async def test_a_timeout_far_away_keeps_nothing_of_its_run() -> None:
    async with a_faulty_broker(), Worker():
        for _ in range(3):
            await (await with_timeout.delay()).result(20)
        await asyncio.sleep(0.1)
        assert contexts(with_timeout.name) == []
