"""A run is settled in a user's transaction. While that is open nobody waits for it, and its commit tells those who wait for the job."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import pytest

from taskflow.broker import topics
from taskflow.broker.console import View
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.protocol import Broker
from taskflow.broker.transactional import TransactionalBroker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import key_digest
from taskflow.model.record import Status
from taskflow.model.session import Beat, Report
from taskflow.model.verdict import Completed, Failed, Progress, RunError, Settled, Settlement
from tests.stores.postgres.counts import SESSION, Store, new_id
from tests.support.listing import listed
from tests.support.verdicts import failed, settlement, succeeded

SOON: Final = 1.0
"""Seconds. Less than those for which a verb waits for a lock."""

BEYOND_THE_MARKS: Final = 0.8
"""Seconds. A mark lies half a second back."""

KEY: Final = key_digest("default", "work", "k")
ROLLED_BACK: Final = Failed(RunError("taskflow.RolledBack", "its transaction was rolled back"))


async def within(broker: Broker, connection: asyncpg.Connection, settlement: Settlement) -> Settled:
    assert isinstance(broker, TransactionalBroker)
    steps = (await broker.transactional()).settle(settlement).steps()
    statement = next(steps)
    while True:
        rows = await connection.fetch(statement.sql.replace("%s", "$1"), *statement.parameters)
        try:
            statement = steps.send(list(map(tuple, rows)))
        except StopIteration as end:
            answer: Settled = end.value
            return answer


async def running(broker: Broker, request: int = 1, **fields: Any) -> Lease:
    await broker.enqueue([an_envelope(**fields)])
    [lease] = await broker.claim(SESSION, request, [], 1)
    return lease


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(id=new_id(), job="work", payload=b"\x01", **fields)


def completed(lease: Lease) -> Settlement:
    return settlement(lease, Completed(ROLLED_BACK))


async def status_of(broker: Broker, lease: Lease) -> Status | None:
    [record] = await broker.read([lease.envelope.id])
    return None if record is None else record.status


async def test_while_it_is_open_no_verb_waits_for_it(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Neither the beat with the run's progress, nor claims, upkeep, the settlement itself and others beside it, nor who looks at it."""
    await broker.enqueue([an_envelope() for _ in range(3)])
    [lease] = await broker.claim(SESSION, 1, [], 1)
    await stranger.execute("BEGIN")
    assert await within(broker, stranger, succeeded(lease)) is Settled.OK

    async with asyncio.timeout(SOON):
        report = Report(lease.claim, 1.0, Progress(0.5, "half"))
        answer = await broker.beat(Beat(session=SESSION, claims=(lease.claim,), seen=1, reports=(report,)))
        assert lease.claim not in answer.lost
        [other] = await broker.claim(SESSION, 2, [], 1)
        assert await broker.settle([completed(lease), succeeded(other)]) == [Settled.HELD_UP, Settled.OK]
        await broker.upkeep(100)
        await broker.console.queues()
        await listed(broker.console)
        await broker.console.purge(View(statuses=(Status.SUCCEEDED, Status.READY)), limit=10)
        assert await status_of(broker, lease) is Status.RUNNING

    await stranger.execute("COMMIT")
    assert await broker.settle([completed(lease), succeeded(other)]) == [Settled.COMMITTED, Settled.OK]


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("how", ["reaped", "left"])
async def test_a_session_that_ends_meanwhile_leaves_the_lease_to_upkeep(
    store: Store, broker: Broker, stranger: asyncpg.Connection, how: str, ends: str
) -> None:
    """The commit stands. After a rollback the job runs elsewhere."""
    lease = await running(broker)
    await stranger.execute("BEGIN")
    await within(broker, stranger, succeeded(lease))
    async with asyncio.timeout(SOON):
        if how == "left":
            await broker.beat(Beat(session=SESSION, leaving=True))
        else:
            other = await asyncpg.connect(store.url)
            await other.execute("UPDATE taskflow.sessions SET lapses_at = 0")
            await other.close()
        assert (await broker.upkeep(10)).released == 0

    await stranger.execute(ends)
    released = (await broker.upkeep(10)).released

    assert (released, await status_of(broker, lease)) == ((0, Status.SUCCEEDED) if ends == "COMMIT" else (1, Status.READY))
    assert await broker.settle([completed(lease)]) == [Settled.COMMITTED if ends == "COMMIT" else Settled.STALE]


async def test_a_plain_settlement_learns_that_it_has_committed(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Also one that comes late, when the result is not kept any more, and one that is sent with others."""
    lease = await running(broker)
    async with stranger.transaction():
        assert await within(broker, stranger, succeeded(lease, keep_for=0.0)) is Settled.OK
        assert await within(broker, stranger, succeeded(lease)) is Settled.OK

    for late in (completed(lease), succeeded(lease), failed(lease)):
        assert await broker.settle([late]) == [Settled.COMMITTED]
    await broker.upkeep(100)
    assert await status_of(broker, lease) is None
    other = await running(broker, 2)
    assert await broker.settle([completed(lease), succeeded(other)]) == [Settled.COMMITTED, Settled.OK]


async def test_a_lock_of_another_transaction_is_an_answer(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """The user's transaction goes on, and holds nothing of the job."""
    lease = await running(broker, key=KEY)
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


async def test_two_transactions_that_wait_for_each_other_both_go_on(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """The server finds the deadlock, which would make one of them fail."""
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
    """The transaction does not see the row as the heartbeat left it. It fails as any such transaction does, and its repetition succeeds."""
    lease = await running(broker)
    async with stranger.transaction(isolation="repeatable_read"):
        await stranger.fetchval("SELECT 1")
        await broker.beat(Beat(session=SESSION, claims=(lease.claim,), seen=1, reports=(Report(lease.claim, 1.0),)))
        with pytest.raises(asyncpg.SerializationError):
            async with stranger.transaction():
                await within(broker, stranger, succeeded(lease))

    async with stranger.transaction(isolation="repeatable_read"):
        assert await within(broker, stranger, succeeded(lease)) is Settled.OK
    assert await status_of(broker, lease) is Status.SUCCEEDED


async def test_its_commit_tells_whoever_waits_for_the_end(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    lease = await running(broker)
    waiter = connect(store.url)
    with waiter.listen([topics.job(lease.envelope.id)]) as nudges:
        assert (await status_of(waiter, lease)) is Status.RUNNING
        await listens(waiter)
        async with stranger.transaction():
            await within(broker, stranger, succeeded(lease))
            assert not await nudges.wait(0.2)

        assert await nudges.wait(SOON)
        assert await status_of(waiter, lease) is Status.SUCCEEDED
    await waiter.close()


async def test_a_job_that_waited_for_the_key_is_found_after_the_commit(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    """Though the queue's mark has gone on meanwhile, beyond the time at which the job became ready."""
    lease = await running(broker, key=KEY)
    await broker.enqueue([an_envelope(key=KEY, on_conflict=OnConflict.REPLACE)])
    await stranger.execute("BEGIN")
    await within(broker, stranger, succeeded(lease))
    for request in range(2, 5):
        await asyncio.sleep(BEYOND_THE_MARKS)
        other = await running(broker, request)
        await broker.settle([succeeded(other)])

    worker = connect(store.url)
    with worker.listen([topics.ANY_QUEUE]) as nudges:
        assert await worker.claim(SESSION, 5, [], 1) == []
        await listens(worker)
        await stranger.execute("COMMIT")
        await broker.upkeep(100)
        assert await nudges.wait(SOON)
        assert len(await worker.claim(SESSION, 6, [], 1)) == 1
    await worker.close()


async def test_only_those_whom_the_owner_lets_may_call_it(store: Store, broker: Broker, stranger: asyncpg.Connection) -> None:
    await stranger.execute("CREATE ROLE clerk; GRANT USAGE ON SCHEMA taskflow TO clerk")
    query = "SELECT has_function_privilege('clerk', 'taskflow.settle_within(text)', 'EXECUTE')"
    assert not await stranger.fetchval(query)
    await stranger.execute("GRANT EXECUTE ON FUNCTION taskflow.settle_within TO clerk")

    assert await stranger.fetchval(query)
    await stranger.execute("DROP OWNED BY clerk; DROP ROLE clerk")


async def listens(broker: Broker) -> None:
    assert isinstance(broker, PostgresBroker)
    async with asyncio.timeout(SOON):
        while not broker.listener.is_at_rest:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.005)
