"""Transactions at "repeatable read" and "serializable", by users or by a database's default: their jobs are like any others."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import pytest

from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, Store, new_id
from tests.support.postgres import shared_postgres
from tests.support.verdicts import failed, succeeded

LEVELS: Final = ("repeatable read", "serializable")

BEYOND_THE_MARKS: Final = 0.8
"""Seconds. A mark lies half a second back."""

HOUR: Final = 3_600_000_000

SOON: Final = 5.0
"""Seconds; half of those after which upkeep looks behind the marks."""


@pytest.mark.parametrize("conflict", ["keep", "replace"])
@pytest.mark.parametrize("stands", ["waits", "runs"])
@pytest.mark.parametrize("level", LEVELS)
async def test_a_key_that_a_snapshot_does_not_show_has_one_job_after_the_commit(
    store: Store, broker: Broker, stranger: asyncpg.Connection, level: str, stands: str, conflict: str
) -> None:
    """The engine decides after the commit, and sees the job that stands."""
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


@pytest.mark.parametrize("level", LEVELS)
async def test_what_such_a_transaction_adds_is_found_as_it_commits(broker: Broker, stranger: asyncpg.Connection, level: str) -> None:
    """Though the marks have gone on beyond it meanwhile, which it does not see."""
    await stranger.execute(f"BEGIN ISOLATION LEVEL {level}")
    late = await stranger.fetchval("SELECT taskflow.enqueue('work')")
    request = 0
    for _ in range(3):
        await asyncio.sleep(BEYOND_THE_MARKS)
        await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01")])
        request += 1
        [lease] = await broker.claim(SESSION, request, [], 1)
        await broker.settle([succeeded(lease)])

    with broker.listen([topics.queue("default")]) as nudges:
        await stranger.execute("COMMIT")
        async with asyncio.timeout(SOON):
            while not (leases := await broker.claim(SESSION, request := request + 1, [], 1)):
                await nudges.wait(SOON)

    assert [lease.envelope.id for lease in leases] == [late.bytes]


@pytest.mark.parametrize("level", LEVELS)
async def test_where_it_is_the_default_a_schema_is_made_by_many_at_once(level: str) -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{level}'")
    await _used_by_many(f"{server.url(database)}?pooled=1")


async def _used_by_many(url: str) -> None:
    brokers = [connect(url) for _ in range(8)]
    answers = await asyncio.gather(
        *(broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", queue=f"q{n}")]) for n, broker in enumerate(brokers))
    )
    assert len(answers) == len(brokers)
    assert {queue.name: queue.counts[Status.READY] for queue in await brokers[0].console.queues() if queue.name.startswith("q")} == {
        f"q{n}": 1 for n in range(len(brokers))
    }
    for broker in brokers:
        await broker.close()


async def test_backslashes_may_mean_what_they_meant_long_ago(store: Store, stranger: asyncpg.Connection) -> None:
    """A database with standard_conforming_strings off, and a pooler that keeps it so: failures and crashes are written."""
    database = await stranger.fetchval("SELECT current_database()")
    await stranger.execute(f"ALTER DATABASE {database} SET standard_conforming_strings = off")
    broker = connect(f"{store.url}?pooled=1")
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01") for _ in range(2)])
    first, second = await broker.claim(SESSION, 1, [], 10)
    assert await broker.settle([failed(first)]) == [Settled.OK]
    await broker.register(Session(id=new_id(), name="another"))  # whose beat shows that there was no outage
    await stranger.execute("UPDATE taskflow.sessions SET beat_at = beat_at - $1, lapses_at = lapses_at - $1 WHERE id = $2", HOUR, SESSION)
    await broker.upkeep(10)
    await broker.upkeep(10)
    [ended, crashed] = await broker.read([first.envelope.id, second.envelope.id])
    assert ended is not None
    assert ended.status is Status.FAILED
    assert crashed is not None
    assert len(crashed.errors) == 1
    await broker.close()
