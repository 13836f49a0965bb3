"""Jobs are sent and settled in users' transactions: locks, deadlocks and isolation levels. Conformance and tests/transactions have the
rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator, Sequence
from typing import Any, Final, Literal

import asyncpg
import pytest

from taskflow.broker.postgres.transactional import PostgresTransactional
from taskflow.broker.protocol import Broker
from taskflow.broker.transactional import Statement, TransactionalBroker
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import key_digest
from taskflow.model.record import Status
from taskflow.model.session import Beat, Report
from taskflow.model.verdict import Completed, Failed, RunError, Settled, Settlement
from tests.stores.jobs import an_envelope, statuses
from tests.stores.postgres.counts import SESSION, Store
from tests.support.listing import listed
from tests.support.verdicts import failed, settlement, succeeded

ROLLED_BACK: Final = Failed(RunError("taskflow.RolledBack", "its transaction was rolled back"))


async def run(steps: Generator[Statement, Any, Any], connection: asyncpg.Connection) -> Any:
    statement = next(steps)
    while True:
        rows = await connection.fetch(statement.sql.replace("%s", "$1"), *statement.parameters)
        try:
            statement = steps.send(list(map(tuple, rows)))
        except StopIteration as end:
            return end.value


async def within(broker: Broker, connection: asyncpg.Connection, settlement: Settlement) -> Settled:
    assert isinstance(broker, TransactionalBroker)
    answer: Settled = await run((await broker.transactional()).settle(settlement).steps(), connection)
    return answer


async def running(broker: Broker, request: int = 1, **fields: Any) -> Lease:
    await broker.enqueue([an_envelope(**fields)])
    [lease] = await broker.claim(SESSION, request, [], 1)
    return lease


def completed(lease: Lease) -> Settlement:
    return settlement(lease, Completed(ROLLED_BACK))


async def test_a_lock_of_another_transaction_is_an_answer(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """The user's transaction goes on, and holds no lock on the job."""
    lease = await running(broker, key=key_digest("default", "work", "k"))
    other = await asyncpg.connect(store.url)
    await other.execute("BEGIN")
    await other.execute("SELECT FROM taskflow.jobs FOR UPDATE")
    await stranger.execute("BEGIN; CREATE TABLE effects (n integer); INSERT INTO effects VALUES (1)")
    assert await within(broker, stranger, succeeded(lease)) is Settled.HELD_UP
    await other.execute("ROLLBACK")
    await other.close()
    assert await broker.settle([failed(lease)]) == [Settled.OK]
    await stranger.execute("COMMIT")
    assert await stranger.fetchval("SELECT n FROM effects") == 1


async def test_two_transactions_that_wait_for_each_other_both_commit(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """Without this, the server would find the deadlock and make one of them fail."""
    first, second = await running(broker), await running(broker, 2)
    other = await asyncpg.connect(store.url)
    async with stranger.transaction(), other.transaction():
        await within(broker, stranger, succeeded(first))
        await within(broker, other, succeeded(second))
        answers = await asyncio.gather(within(broker, stranger, succeeded(second)), within(broker, other, succeeded(first)))
        assert list(answers) == [Settled.HELD_UP] * 2
    await other.close()
    assert await broker.settle([completed(first), completed(second)]) == [Settled.COMMITTED] * 2


async def test_at_repeatable_read_a_run_that_has_been_reported_since_is_settled_in_another_try(
    broker: Broker, stranger: asyncpg.Connection
) -> None:
    """The transaction does not see the row as the heartbeat left it. It fails like any such transaction, and its repetition succeeds."""
    lease = await running(broker)
    async with stranger.transaction(isolation="repeatable_read"):
        await stranger.fetchval("SELECT 1")
        await broker.beat(Beat(session=SESSION, claims=(lease.claim,), seen=1, reports=(Report(lease.claim, 1.0),)))
        with pytest.raises(asyncpg.SerializationError):
            async with stranger.transaction():
                await within(broker, stranger, succeeded(lease))
    async with stranger.transaction(isolation="repeatable_read"):
        assert await within(broker, stranger, succeeded(lease)) is Settled.OK
    assert await statuses(broker, lease.envelope) == [Status.SUCCEEDED]


@pytest.mark.parametrize("conflict", ["keep", "replace"])
@pytest.mark.parametrize("stands", ["waits", "runs"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_key_that_a_snapshot_does_not_show_has_one_job_after_the_commit(
    store: Store, broker: Broker, stranger: asyncpg.Connection, level: str, stands: str, conflict: str
) -> None:
    """The engine decides after the commit, and sees the existing job."""
    send = "SELECT taskflow.enqueue('work', key => 'k', on_conflict => $1)"
    await stranger.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class")
    other = await asyncpg.connect(store.url)
    standing = await other.fetchval(send, "keep")
    await other.close()
    await broker.upkeep(10)
    leases = await broker.claim(SESSION, 1, [], 10) if stands == "runs" else []
    late = await stranger.fetchval(send, conflict)
    await stranger.execute("COMMIT")
    await broker.upkeep(10)

    leases += await broker.claim(SESSION, 2, [], 10)
    first = late if (stands, conflict) == ("waits", "replace") else standing
    assert [lease.envelope.id for lease in leases] == [first.bytes]
    assert await broker.settle([succeeded(leases[0])]) == [Settled.OK]
    following = await broker.claim(SESSION, 3, [], 10)
    assert [lease.envelope.id for lease in following] == ([late.bytes] if (stands, conflict) == ("runs", "replace") else [])


HERE: Final = PostgresTransactional("here", "taskflow", "", lambda: None, None)


async def add(connection: asyncpg.Connection, envelope: Envelope) -> None:
    await run(HERE.enqueue([envelope]).steps(), connection)


async def test_a_transaction_notes_its_place_once(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Each note is a trigger at the commit."""
    await broker.read([])
    async with stranger.transaction():
        for _ in range(5):
            await add(stranger, an_envelope())
        await add(stranger, an_envelope(priority=1))
        assert await stranger.fetchval("SELECT count(*) FROM taskflow.tally WHERE late_at IS NOT NULL") == 2
        await stranger.execute("SAVEPOINT here")
        await add(stranger, an_envelope(priority=2))
        await stranger.execute("ROLLBACK TO SAVEPOINT here")
        await add(stranger, an_envelope(priority=2))
        assert await stranger.fetchval("SELECT count(*) FROM taskflow.tally WHERE late_at IS NOT NULL") == 3


KEYS: Final = [bytes([number]) * 16 for number in range(8)]


@pytest.mark.parametrize(("level", "modes"), [("read_committed", tuple(OnConflict)), ("serializable", (OnConflict.REPLACE,))])
async def test_transactions_with_the_same_keys_do_not_wait(
    store: Store, broker: Broker, level: Literal["read_committed", "serializable"], modes: Sequence[OnConflict]
) -> None:
    """They take several keys in any order, beside each other and beside senders of batches. The server ends none of them. At "serializable"
    it may end one that has read which job has a key."""
    await broker.upkeep(1)
    is_over = asyncio.Event()

    def some(chance: random.Random, number: int) -> list[Envelope]:
        return [an_envelope(key=key, on_conflict=chance.choice(modes)) for key in chance.sample(KEYS, number)]

    async def send_batches(chance: random.Random) -> None:
        while not is_over.is_set():
            await broker.enqueue(some(chance, len(KEYS)))
            await broker.upkeep(100)

    async def send_within(chance: random.Random) -> None:
        connection = await asyncpg.connect(store.url)
        for _ in range(30):
            async with connection.transaction(isolation=level):
                for envelope in some(chance, 4):
                    await add(connection, envelope)
        await connection.close()

    batches = asyncio.create_task(send_batches(random.Random(1)))
    async with asyncio.timeout(60):
        await asyncio.gather(*(send_within(random.Random(seed)) for seed in range(2, 6)))
    is_over.set()
    await batches
    await broker.upkeep(1_000)

    holders = await broker.holders(KEYS)
    waiting = [record.id for record in await listed(broker.admin) if record.status is Status.READY]
    assert sorted(filter(None, holders)) == sorted(waiting)
