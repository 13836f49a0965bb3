"""A transaction that stays open while workers claim from the queue of its jobs."""

from __future__ import annotations

import asyncio
import time

import asyncpg

import taskflow
from taskflow import Worker
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from tests.transactions.jobs import note, ran


async def until(numbers: set[int], within: float = 20.0) -> None:
    """Wait until these notes have run."""
    give_up_at = time.monotonic() + within
    while not numbers <= {number for number, _ in ran}:
        assert time.monotonic() < give_up_at, numbers - {number for number, _ in ran}
        await asyncio.sleep(0.01)


async def found_after_a_long_transaction(url: str, seconds: float) -> None:
    """Its jobs begin when it commits, although the low-water marks have risen above them."""
    ran.clear()
    broker = connect(url)
    connection = await asyncpg.connect(url)
    with default_app().using(broker):
        async with Worker(concurrency=10):
            beside = range(int(seconds / 0.05))
            async with connection.transaction():
                await note.options(connection=connection).delay(-1)
                await taskflow.enqueue([note.bind(-2), note.bind(-3)], connection=connection)
                for number in beside:
                    await note.delay(number)
                    await asyncio.sleep(0.05)
                assert not {-1, -2, -3} & set(dict(ran))
            committed_at = time.monotonic()
            await until({-1, -2, -3})
            assert max(when for number, when in ran if number < 0) - committed_at < 1.0
            await until(set(beside))
        await broker.close()
    await connection.close()
