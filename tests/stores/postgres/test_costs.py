"""A job's cost to the server, in counts that are the same on every machine: rows read and written, transactions, indexes."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import msgspec

from taskflow.broker import topics
from taskflow.broker.console import View
from taskflow.broker.postgres.enqueue import envelope_columns
from taskflow.broker.postgres.settle import success_columns
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, Store, new_id
from tests.support.listing import listed
from tests.support.verdicts import succeeded
from tests.support.waiting import until

BATCH: Final = 100
BATCHES: Final = 5

LEASE: Final = "SELECT * FROM taskflow.claim(NULL, NULL, $1, $2, '{}', $3)"
SUCCEED: Final = "SELECT * FROM taskflow.succeed(NULL, $1, $2, $3, $4, $5)"
ENQUEUE: Final = "SELECT * FROM taskflow.enqueue_all(NULL, NULL, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"


def envelopes(number: int) -> list[Envelope]:
    return [Envelope(id=new_id(), job="work", payload=b"\x01payload") for _ in range(number)]


async def test_each_verb_reads_what_it_changes_and_no_more(store: Store) -> None:
    """A claim what it takes, once; a settlement each version of the rows that it ends; an enqueue nothing: of all tables and indexes."""
    broker = connect(store.url)
    await broker.enqueue(envelopes(3 * BATCH))
    store.counted = "."
    [claim] = await store.costs(LEASE, SESSION, 1, BATCH)
    leases = await broker.claim(SESSION, 1, [], BATCH)
    [settlement] = await store.costs(SUCCEED, *success_columns([succeeded(lease) for lease in leases]))
    [enqueue] = await store.costs(ENQUEUE, *envelope_columns(envelopes(BATCH)))
    versions = 3  # as it was added, as the claim that was rolled back has left it, and as it was leased
    for cost, most in ((claim, BATCH), (settlement, versions * BATCH), (enqueue, 0)):
        assert sum(read for _, read in cost.values()) <= most + 20, cost
    await broker.close()


async def test_jobs_without_tags_never_touch_the_table_of_tags(store: Store) -> None:
    """Neither when they are added, in a batch or alone, nor when they end, nor when they are dropped, beside jobs that have tags."""
    broker = connect(store.url)
    await broker.enqueue([msgspec.structs.replace(each, tags=("a", "b"), after=3_600.0) for each in envelopes(2)])
    store.counted = "^tags"
    for number in (1, BATCH):
        given = envelope_columns([msgspec.structs.replace(each, max_attempts=3) for each in envelopes(number)])
        assert await store.costs(ENQUEUE, *given) == [{}]
    await broker.enqueue(envelopes(BATCH))
    leases = await broker.claim(SESSION, 1, [], BATCH)
    assert await broker.settle([succeeded(lease, keep_for=0.0) for lease in leases]) == [Settled.OK] * BATCH
    [cost] = await store.costs("SELECT * FROM taskflow.upkeep(NULL, NULL, 1000)")
    assert cost == {}
    assert (await broker.upkeep(1_000)).dropped == BATCH
    assert await store.in_one_transaction("SELECT count(*) FROM taskflow.tags") == [4]
    await broker.close()


async def test_a_job_is_written_three_times_in_a_hundredth_of_three_transactions(store: Store) -> None:
    """As it is added, leased and ended; besides, one transaction that tells who waits."""
    before = store.database_stats()
    broker = connect(store.url)
    for request in range(1, BATCHES + 1):
        await broker.enqueue(envelopes(BATCH))
        leases = await broker.claim(SESSION, request, [], BATCH)
        assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * BATCH
    await broker.close()
    await until(lambda: not store.others(), 5)  # the server has counted what a connection did once it has ended
    inserted, updated, transactions = (after - earlier for after, earlier in zip(store.database_stats(), before, strict=True))
    assert (inserted, updated) == (BATCHES * BATCH, 2 * BATCHES * BATCH)
    assert transactions <= 5 * BATCHES + 20  # the first use looks at the schema, and each look of this test is one


async def test_a_purge_of_20_000_waiting_jobs_ends_in_time_and_tells_in_one_word(store: Store) -> None:
    """Whoever waits for one of them looks. To list them all took the square of their number."""
    broker = connect(store.url)
    for _ in range(20):
        await broker.enqueue(envelopes(1_000))
    stranger = await asyncpg.connect(store.url)
    await stranger.execute("BEGIN")
    assert await stranger.fetchval("SELECT wakeups FROM taskflow.purge(NULL, NULL, NULL, NULL, NULL, false, 1000)") == "*"
    await stranger.execute("ROLLBACK")
    await stranger.close()
    assert await broker.console.purge(View(), limit=20_000) == 20_000
    assert await listed(broker.console) == []
    [queue] = await broker.console.queues()
    assert set(queue.counts.values()) == {0}
    await broker.close()


async def test_a_purge_wakes_whoever_waits_for_one_of_many(store: Store) -> None:
    broker, other = connect(store.url), connect(store.url)
    waiting = envelopes(300)
    await broker.enqueue(waiting)
    with other.listen([topics.job(waiting[-1].id)]) as nudges:
        waits = asyncio.create_task(nudges.wait(10))
        await asyncio.sleep(0.5)
        await broker.console.purge(View())
        assert await waits
    await broker.close()
    await other.close()
