"""Long transactions, and 5,000 runs that are completed in transactions while workers and connections are killed."""

from __future__ import annotations

import asyncio
import time

import asyncpg

import taskflow
from taskflow import Worker
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from tests.cli.processes import Shell
from tests.faults.counting import each_is_counted_once, on_each_transactional_broker
from tests.support.postgres import shared_postgres
from tests.support.waiting import until
from tests.transactions.jobs import note, ran


@on_each_transactional_broker
def test_each_of_5000_increments_counts_once(shell: Shell) -> None:
    each_is_counted_once(shell, 5_000, kills=40)


async def test_a_job_is_found_after_a_transaction_of_a_minute() -> None:
    """A transaction's jobs begin when it commits, although the low-water marks have risen above them."""
    ran.clear()
    url = shared_postgres().url(shared_postgres().new_database())
    broker = connect(url)
    await broker.read([bytes(16)])
    connection = await asyncpg.connect(url)
    with default_app().using(broker):
        async with Worker(concurrency=10):
            async with connection.transaction():
                await note.options(connection=connection).delay(-1)
                await taskflow.enqueue([note.bind(-2), note.bind(-3)], connection=connection)
                for number in range(1_200):
                    await note.delay(number)
                    await asyncio.sleep(0.05)
                assert not {-1, -2, -3} & set(dict(ran))
            committed_at = time.monotonic()
            await until(lambda: set(range(-3, 1_200)) <= dict(ran).keys(), 20)
            assert max(when for number, when in ran if number < 0) - committed_at < 1.0
        await broker.close()
    await connection.close()
