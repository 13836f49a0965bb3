"""`enqueue_within()` in SQL: whom a commit tells of the jobs that it has added."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import asyncpg
import pytest

from taskflow.broker.postgres.transactional import PostgresTransactional
from taskflow.broker.protocol import Broker
from taskflow.broker.transactional import Transactional, TransactionalBroker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from tests.stores.postgres.counts import Store

new_id = IdFactory()

CHANNEL: Final = "a-listener"


@pytest.fixture
async def told(store: Store, broker: Broker, stranger: asyncpg.Connection) -> AsyncIterator[asyncio.Queue[str]]:
    """Return the notifications of a listener that waits for jobs of the queue "mail" and for due jobs."""
    assert isinstance(broker, TransactionalBroker)
    await broker.transactional()  # makes the schema
    told = asyncio.Queue[str]()
    listening = await asyncpg.connect(store.url)
    await listening.add_listener(CHANNEL, lambda *said: told.put_nowait(str(said[-1])))
    for topic in ("queue:mail", "due"):
        await stranger.execute("INSERT INTO taskflow.idle (listener, topic, since) VALUES ($1, $2, taskflow.wall(NULL))", CHANNEL, topic)
    yield told
    await listening.close()


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(id=new_id(), job="work", payload=b"\x01payload", queue="mail", **fields)


async def add(store: Transactional, connection: asyncpg.Connection, envelopes: list[Envelope]) -> None:
    steps = store.enqueue(envelopes).steps()
    statement = next(steps)
    with pytest.raises(StopIteration):
        steps.send([tuple(row) for row in await connection.fetch(statement.sql.replace("%s", "$1"), *statement.parameters)])


SHAPES: Final[Mapping[str, list[dict[str, Any]]]] = {
    "a lone job": [{}],
    "several": [{}, {"priority": 3}],
    "with a key": [{"key": b"k" * 16}],
    "after a while": [{"after": 60.0}],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("capacity", [None, 100])
async def test_a_commit_tells_a_listener_of_each_shape(
    broker: Broker, told: asyncio.Queue[str], stranger: asyncpg.Connection, shape: str, capacity: int | None
) -> None:
    store = PostgresTransactional("here", "taskflow", "", lambda: None, capacity)
    for ends in ("ROLLBACK", "COMMIT"):
        await stranger.execute("BEGIN")
        await add(store, stranger, [an_envelope(**fields) for fields in SHAPES[shape]])
        await stranger.execute(ends)
        if ends == "ROLLBACK":
            await asyncio.sleep(0.05)
            assert told.empty()
    async with asyncio.timeout(5):
        assert (await told.get()).partition("\n")[0] == ("due" if "after" in SHAPES[shape][0] else "queue:mail")


async def test_each_queue_of_a_call_is_told(broker: Broker, told: asyncio.Queue[str], stranger: asyncpg.Connection) -> None:
    store = PostgresTransactional("here", "taskflow", "", lambda: None, None)
    other = Envelope(id=new_id(), job="work", payload=b"\x01payload", queue="other")
    async with stranger.transaction():
        await add(store, stranger, [other, an_envelope()])
    async with asyncio.timeout(5):
        assert (await told.get()).partition("\n")[0] == "queue:mail"


async def test_a_due_job_beside_too_many_queues_to_name_is_told(
    broker: Broker, told: asyncio.Queue[str], stranger: asyncpg.Connection
) -> None:
    store = PostgresTransactional("here", "taskflow", "", lambda: None, None)
    others = [Envelope(id=new_id(), job="work", payload=b"\x01payload", queue=f"{number:03}" + "x" * 90) for number in range(100)]
    async with stranger.transaction():
        await add(store, stranger, [*others, an_envelope(after=60.0)])
    async with asyncio.timeout(5):
        assert (await told.get()).partition("\n")[0] == "due"


async def test_a_transaction_notes_its_place_once(told: asyncio.Queue[str], broker: Broker, stranger: asyncpg.Connection) -> None:
    """Each note is a trigger at the commit."""
    store = PostgresTransactional("here", "taskflow", "", lambda: None, None)
    async with stranger.transaction():
        for _ in range(5):
            await add(store, stranger, [an_envelope()])
        await add(store, stranger, [an_envelope(priority=1)])
        assert await stranger.fetchval("SELECT count(*) FROM taskflow.tally WHERE late_at IS NOT NULL") == 2
        await stranger.execute("SAVEPOINT here")
        await add(store, stranger, [an_envelope(priority=2)])
        await stranger.execute("ROLLBACK TO SAVEPOINT here")
        await add(store, stranger, [an_envelope(priority=2)])
        assert await stranger.fetchval("SELECT count(*) FROM taskflow.tally WHERE late_at IS NOT NULL") == 3
