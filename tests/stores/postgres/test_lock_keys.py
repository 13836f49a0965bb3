"""Transactions of others that add jobs under several keys, beside senders of batches."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import asyncpg
import pytest

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.ids import key_digest
from tests.stores.postgres.counts import Store, new_id

KEYS: Final = [f"key {number}" for number in range(8)]
TRANSACTIONS: Final = 60


async def send_batches(broker: Broker, chance: random.Random, is_over: asyncio.Event) -> int:
    """Send batches until it is over; return the number of those that the server ended, since they were in a deadlock."""
    deadlocks = 0
    while not is_over.is_set():
        batch = [
            Envelope(id=new_id(), job="work", payload=b"\x01", key=key_digest("default", "work", key), on_conflict=OnConflict.REPLACE)
            for key in chance.sample(KEYS, len(KEYS))
        ]
        try:
            await broker.enqueue(batch)
        except BrokerUnavailable as error:
            if "deadlock detected" not in str(error):
                raise
            deadlocks += 1
    return deadlocks


async def add_several(connection: asyncpg.Connection, chance: random.Random, *, locks: bool) -> None:
    keys = chance.sample(KEYS, 4)
    async with connection.transaction():
        if locks:
            await connection.execute("SELECT taskflow.lock_keys('default', 'work', $1)", keys)
        for key in keys:
            await connection.execute("SELECT taskflow.enqueue('work', key => $1, on_conflict => 'replace')", key)


@pytest.mark.parametrize("locks", [True, False], ids=["with lock_keys", "without"])
async def test_transactions_that_lock_their_keys_first_deadlock_with_nobody(store: Store, broker: Broker, locks: bool) -> None:
    """Without it some do: it is the order that keeps them from it."""
    chance, is_over = random.Random(1), asyncio.Event()
    await broker.enqueue([])
    await broker.read([new_id()])
    senders = [asyncio.create_task(send_batches(broker, random.Random(seed), is_over)) for seed in (2, 3)]
    strangers = [await asyncpg.connect(store.url) for _ in range(3)]

    async def go_on(connection: asyncpg.Connection) -> int:
        deadlocks = 0
        for _ in range(TRANSACTIONS):
            try:
                await add_several(connection, chance, locks=locks)
            except asyncpg.DeadlockDetectedError:
                deadlocks += 1
                if not locks:
                    break
        return deadlocks

    await strangers[0].execute("SET deadlock_timeout = '50ms'")
    deadlocks = sum(await asyncio.gather(*map(go_on, strangers)))
    is_over.set()
    deadlocks += sum(await asyncio.gather(*senders))
    for connection in strangers:
        await connection.close()
    assert (deadlocks == 0) is locks


async def test_keys_of_several_jobs_are_locked_as_digests(store: Store, stranger: asyncpg.Connection) -> None:
    await stranger.execute(
        "BEGIN; SELECT taskflow.lock_keys(ARRAY[taskflow.key_digest('a', 'work', 'k'), taskflow.key_digest('b', 'rest', 'k')]);"
    )
    assert await stranger.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == 2
    await stranger.execute("COMMIT")


async def test_a_key_that_no_job_may_have_is_refused(stranger: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="key is"):
        await stranger.execute("SELECT taskflow.lock_keys('default', 'work', ARRAY[''])")
