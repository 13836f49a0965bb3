"""Transactions of others that stay open, and roles that may do no more than add jobs: neither harms the fleet. No job is leased to two."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest
from msgspec import structs

from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import IdFactory, key_digest
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, Store, new_id
from tests.support.postgres import shared_postgres
from tests.support.verdicts import succeeded

SOON: Final = 2.0
"""Seconds. Less than those after which an operation gives up waiting for a lock."""

HOUR: Final = 3_600_000_000


async def test_what_a_stranger_holds_harms_no_other_settlement(broker: Broker, stranger: asyncpg.Connection) -> None:
    """An operator has locked a row."""
    ids = sorted(new_id() for _ in range(3))
    await broker.enqueue([Envelope(id=job_id, job="work", payload=b"\x01") for job_id in ids])
    leases = {lease.envelope.id: lease for lease in await broker.claim(SESSION, 1, [], 10)}
    held, *others = (succeeded(leases[job_id]) for job_id in ids)
    await stranger.execute("BEGIN")
    await stranger.fetch("SELECT * FROM taskflow.jobs WHERE id = $1 FOR UPDATE", held.id)

    assert await broker.settle([held, *others]) == [Settled.HELD_UP, Settled.OK, Settled.OK]
    assert await broker.settle([held]) == [Settled.HELD_UP]

    await stranger.execute("ROLLBACK")
    assert await broker.settle([held, *others]) == [Settled.OK] * 3


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
async def test_leases_of_a_claim_that_was_under_way_when_its_session_was_reaped_are_released(
    store: Store, broker: Broker, stranger: asyncpg.Connection, level: str
) -> None:
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01")])
    await lapse(broker, stranger)
    database = await stranger.fetchval("SELECT current_database()")
    await stranger.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{level}'")
    reaper = connect(store.url)
    await stranger.execute("BEGIN")
    [row] = await stranger.fetch("SELECT * FROM taskflow.claim(NULL, NULL, $1, 1, '{}', 10, 1)", SESSION)
    reaping = asyncio.create_task(reaper.upkeep(10))
    while not await stranger.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await stranger.execute("COMMIT")
    done = await reaping
    assert (done.reaped, done.released) == (1, 1)
    await reaper.close()
    [record] = await broker.read([row["id"]])
    assert record is not None
    assert record.status is not Status.RUNNING


async def lapse(broker: Broker, connection: asyncpg.Connection) -> None:
    """The session has sent no heartbeat for an hour. Another one has, so this was no outage."""
    await broker.register(Session(id=new_id(), name="another"))
    await connection.execute("UPDATE taskflow.sessions SET beat_at = beat_at - $1, lapses_at = lapses_at - $1 WHERE id = $2", HOUR, SESSION)


LOCKS: Final = """
    SELECT taskflow.listener_registration_lock()
    UNION ALL SELECT hashtextextended('"taskflow".notifying ' || topic, 0) FROM unnest(ARRAY['queue:default', 'due']) AS topic
"""
"""The advisory locks that our functions take for such jobs."""


@pytest.fixture
async def locker(store: Store) -> AsyncIterator[asyncpg.Connection]:
    """A role that may only connect holds all advisory locks that it can guess."""
    owner = await asyncpg.connect(store.url)
    await owner.execute("DROP ROLE IF EXISTS locker; CREATE ROLE locker LOGIN")
    numbers = [number for (number,) in await owner.fetch(LOCKS)]
    connection = await asyncpg.connect(store.url, user="locker")
    await connection.execute("BEGIN")
    await connection.execute("SELECT pg_advisory_lock(each) FROM unnest($1::bigint[]) AS each", [*numbers, 0x7461_736B_666C_6F77])
    yield connection
    await connection.close()
    await owner.execute("DROP ROLE locker")
    await owner.close()


@pytest.mark.usefixtures("locker")
async def test_advisory_locks_of_a_stranger_stop_neither_commits_nor_verbs(
    store: Store, broker: Broker, stranger: asyncpg.Connection
) -> None:
    key = key_digest("default", "work", "k")
    async with asyncio.timeout(SOON):
        for send in ("'work'", "'work', after => '1 ms'", "'work', key => 'k'", "'work', key => 'k', on_conflict => 'replace'"):
            await stranger.execute(f"SELECT taskflow.enqueue({send})")
        await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", key=key, on_conflict=OnConflict.REPLACE)])
        await broker.upkeep(100)
        leases = await broker.claim(SESSION, 1, [], 10)
        assert len(leases) == 3
        following = Envelope(id=new_id(), job="work", payload=b"\x01", key=key)
        first, *rest = (succeeded(lease) for lease in leases)
        assert await broker.settle([structs.replace(first, follow_ups=(following,)), *rest]) == [Settled.OK] * 3
        await stranger.execute("SELECT taskflow.check_marks(NULL)")


@pytest.mark.usefixtures("locker")
async def test_advisory_locks_of_a_stranger_stop_no_migration(store: Store) -> None:
    broker = connect(f"{store.url}?namespace=another")
    async with asyncio.timeout(SOON):
        assert await broker.enqueue([]) == []
        await broker.migrate()  # type: ignore[attr-defined]
    await broker.close()


async def test_a_role_that_may_add_jobs_cannot_act_as_the_owner(store: Store, stranger: asyncpg.Connection) -> None:
    """The trigger function that runs as the schema's owner works for our table only, and no other role may call it."""
    await stranger.execute("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory; GRANT USAGE ON SCHEMA taskflow TO mallory; SET ROLE mallory")
    await stranger.execute("CREATE TEMP TABLE trap (queue text, late_priority integer, late_at bigint)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stranger.execute("CREATE TRIGGER springs AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION taskflow.on_commit()")
    await stranger.fetchval("SELECT taskflow.enqueue('work')")
    await stranger.execute("RESET ROLE; DROP TABLE trap; REVOKE USAGE ON SCHEMA taskflow FROM mallory; DROP ROLE mallory")


JOBS: Final = 2_000


CLAIMERS: Final = 6


async def test_workers_never_get_the_same_job(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with a store of its own, all of them at once, some from every queue and some from one."""
    database, new_id = shared_postgres().new_database(), IdFactory()
    brokers = [connect(shared_postgres().url(database)) for _ in range(CLAIMERS)]
    for first in range(0, JOBS, 500):
        envelopes = [Envelope(id=new_id(), job="work", payload=b"\x01", queue=f"queue{n % 3}") for n in range(first, first + 500)]
        await brokers[0].enqueue(envelopes)
    claims = await asyncio.gather(*(claim_all(broker, number) for number, broker in enumerate(brokers)))
    taken = Counter(lease.envelope.id for leases in claims for lease in leases)
    with capsys.disabled():
        print(f"\n{JOBS} jobs taken by {CLAIMERS}: {[len(leases) for leases in claims]}")
    assert len(taken) == taken.total() == JOBS
    assert sum(bool(leases) for leases in claims) == CLAIMERS
    for broker in brokers:
        await broker.close()


async def claim_all(broker: Broker, number: int) -> list[Lease]:
    """A few at a time, until there are none, three times in a row: what others have locked is passed over."""
    session = Session(id=os.urandom(16), name=f"worker {number}")
    await broker.register(session)
    found, request, in_vain = list[Lease](), 0, 0
    while in_vain < 3:
        request += 1
        leases = await broker.claim(session.id, request, [] if number % 2 else [f"queue{request % 3}"], 7)
        found += leases
        in_vain = 0 if leases else in_vain + 1
    return found
