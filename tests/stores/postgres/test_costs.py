"""A job's cost to the server, in counts that are the same on every machine: rows read and written, transactions, calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import pytest

from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Lease
from taskflow.model.session import Beat
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, new_id
from tests.stores.postgres.counts import SESSION, Store, counting, rows_of
from tests.support.verdicts import SettlementOf, failed, retried, succeeded
from tests.support.waiting import until

BATCH: Final = 100
BATCHES: Final = 5


def settling(leases: list[Lease], settlement: SettlementOf = succeeded) -> Callable[[Broker], Awaitable[Any]]:
    return lambda broker: broker.settle([settlement(lease) for lease in leases])


async def test_each_operation_reads_only_the_rows_that_it_changes(store: Store, broker: Broker) -> None:
    """From all tables and indexes, a claim reads what it takes, once; a settlement each version of the rows that it ends; an enqueue
    nothing."""
    await broker.enqueue(envelopes(3 * BATCH))
    store.counted = "."
    [claim] = await store.costs(lambda broker: broker.claim(SESSION, 1, [], BATCH))
    leases = await broker.claim(SESSION, 1, [], BATCH)
    [success] = await store.costs(settling(leases))
    [retry] = await store.costs(settling(leases, retried))
    [enqueue] = await store.costs(lambda broker: broker.enqueue(envelopes(BATCH)))
    [keyed] = await store.costs(lambda broker: broker.enqueue([an_envelope(key=new_id()) for _ in range(BATCH)]))
    versions = 3  # as it was added, as the claim that was rolled back has left it, and as it was leased
    for cost, most in ((claim, BATCH), (success, versions * BATCH), (retry, 4 * versions * BATCH), (enqueue, 0), (keyed, 0)):
        assert rows_of(cost) <= most + 20, cost


async def test_jobs_without_tags_never_touch_the_table_of_tags(store: Store, broker: Broker) -> None:
    """They don't when they are added, in a batch or alone, nor when they end, nor when they are dropped, beside jobs that have tags."""
    await broker.enqueue([msgspec.structs.replace(each, tags=("a", "b"), after=3_600.0) for each in envelopes(2)])
    store.counted = "^tags"
    for number in (1, BATCH):
        assert await store.costs(lambda broker, number=number: broker.enqueue(envelopes(number))) == [{}]  # type: ignore[misc]
    await broker.enqueue(envelopes(BATCH))
    leases = await broker.claim(SESSION, 1, [], BATCH)
    assert await store.costs(settling(leases, retried)) == [{}]
    assert await broker.settle([succeeded(lease, keep_for=0.0) for lease in leases]) == [Settled.OK] * BATCH
    assert await store.costs(lambda broker: broker.upkeep(1_000)) == [{}]
    assert (await broker.upkeep(1_000)).dropped == BATCH
    assert await store.connection.fetchval("SELECT count(*) FROM taskflow.tags") == 4


STATS: Final = """
    SELECT n_tup_ins, n_tup_upd, (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())
    FROM pg_stat_user_tables WHERE relname = 'jobs'
"""
"""For jobs, the rows that were inserted and updated; for the database, the transactions."""


async def test_a_job_is_written_three_times_in_a_hundredth_of_three_transactions(store: Store) -> None:
    """It is written when added, leased and ended; one more transaction notifies waiters."""
    [before] = store.rows(STATS)
    broker = connect(store.url)
    for request in range(1, BATCHES + 1):
        await broker.enqueue(envelopes(BATCH))
        leases = await broker.claim(SESSION, request, [], BATCH)
        assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * BATCH
    await broker.close()
    ours = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'taskflow'"
    await until(lambda: not store.rows(ours), 5)  # the server has counted what a connection did once it has ended
    [after] = store.rows(STATS)
    inserted, updated, transactions = (now - then for now, then in zip(after, before, strict=True))
    assert (inserted, updated) == (BATCHES * BATCH, 2 * BATCHES * BATCH)
    assert transactions <= 5 * BATCHES + 20  # the first use checks the schema, and each read of this test is one


CALLS: Final[Mapping[str, tuple[dict[str, int], Callable[[Broker, list[Lease]], Awaitable[Any]]]]] = {
    "enqueue": ({"add": 1}, lambda broker, _: broker.enqueue(envelopes(BATCH))),
    "enqueue with keys": ({"apply": 1}, lambda broker, _: broker.enqueue([*envelopes(1, key=bytes(16)), *envelopes(1, key=b"k" * 16)])),
    "success": ({"succeed": 1}, lambda broker, leases: settling(leases)(broker)),
    "retry": ({"look": 1, "apply": 1}, lambda broker, leases: settling(leases, retried)(broker)),
    "failure": ({"look": 1, "apply": 1}, lambda broker, leases: settling(leases, failed)(broker)),
    "cancel": ({"look": 1, "apply": 1}, lambda broker, leases: broker.cancel([lease.envelope.id for lease in leases])),
    "beat": (
        {"look": 1, "apply": 1},
        lambda broker, leases: broker.beat(Beat(session=SESSION, claims=tuple(lease.claim for lease in leases), seen=1)),
    ),
    "beat that looks": ({"look": 1, "apply": 1}, lambda broker, _: broker.beat(Beat(session=SESSION, looks=True))),
    "upkeep": ({"look": 1, "promote": 1, "fade": 1}, lambda broker, _: broker.upkeep(BATCH)),
}


@pytest.mark.parametrize("verb", CALLS)
async def test_a_verb_takes_few_calls_however_many_jobs(store: Store, broker: Broker, verb: str) -> None:
    await broker.enqueue(envelopes(BATCH))
    leases = await broker.claim(SESSION, 1, [], BATCH)
    expected, call = CALLS[verb]
    with counting() as asked:
        await call(broker, leases)
        del asked["notify"]
    assert asked == expected
