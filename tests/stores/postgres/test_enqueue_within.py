"""`enqueue_within()` in SQL: whom a commit tells of the jobs that it has added."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal

import asyncpg
import pytest

from taskflow.broker.engine.job import Job
from taskflow.broker.postgres.transactional import PostgresTransactional
from taskflow.broker.protocol import Broker
from taskflow.broker.transactional import Transactional, TransactionalBroker
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from tests.stores.postgres.counts import Store
from tests.support.listing import listed

Isolation = Literal["read_committed", "serializable"]

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
        assert (await told.get()).partition("\n")[0] == ("queue:mail" if shape in ("a lone job", "several") else "due")


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


# --- keys -----------------------------------------------------------------------------------------------------------

KEYS: Final = [bytes([number]) * 16 for number in range(8)]


@pytest.mark.parametrize(("level", "modes"), [("read_committed", tuple(OnConflict)), ("serializable", (OnConflict.REPLACE,))])
async def test_transactions_with_the_same_keys_wait_for_nobody(
    store: Store, broker: Broker, level: Isolation, modes: Sequence[OnConflict]
) -> None:
    """They take several keys in any order, beside each other and beside senders of batches. The server ends none of them. At "serializable"
    it may end one that has read which job has a key."""
    within = PostgresTransactional("here", "taskflow", "", lambda: None, None)
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
                    await add(within, connection, [envelope])
        await connection.close()

    batches = asyncio.create_task(send_batches(random.Random(1)))
    async with asyncio.timeout(60):
        await asyncio.gather(*(send_within(random.Random(seed)) for seed in range(2, 6)))
    is_over.set()
    await batches
    await broker.upkeep(1_000)

    holders = await broker.holders(KEYS)
    waiting = [record.id for record in await listed(broker.console) if record.status is Status.READY]
    assert sorted(filter(None, holders)) == sorted(waiting)


async def test_a_field_that_is_new_in_the_header_is_stored(
    store: Store, broker: Broker, stranger: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, with others and with a key: no list of columns has to name it."""
    of_envelope = Job.of_envelope.__func__  # type: ignore[attr-defined]

    def with_note(cls: type[Job], envelope: Envelope, now: int) -> Job:
        job: Job = of_envelope(cls, envelope, now)
        job.header["note"] = 7
        return job

    await stranger.execute("ALTER TABLE taskflow.jobs ADD COLUMN note bigint NOT NULL DEFAULT 0")
    monkeypatch.setattr(Job, "of_envelope", classmethod(with_note))
    within = PostgresTransactional("here", "taskflow", "", lambda: None, None)
    for envelopes in ([an_envelope()], [an_envelope(), an_envelope(tags=("mine",))], [an_envelope(key=b"k" * 16)]):
        await add(within, stranger, envelopes)
    assert [note for (note,) in await stranger.fetch("SELECT note FROM taskflow.jobs")] == [7] * 4
