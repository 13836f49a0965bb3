"""Transactions of others that stay open, and roles that may do no more than add jobs: neither harms the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import OnConflict
from taskflow.model.ids import key_digest
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.postgres.counts import SESSION, Store
from tests.support.verdicts import succeeded
from tests.support.waiting import until

SOON: Final = 2.0
"""Seconds. Less than those after which an operation gives up waiting for a lock."""

HOUR: Final = 3_600_000_000


async def test_what_a_stranger_holds_harms_no_other_settlement(broker: Broker, stranger: asyncpg.Connection) -> None:
    """An operator has locked a row."""
    await broker.enqueue(envelopes(3))
    held, *others = map(succeeded, await broker.claim(SESSION, 1, [], 10))
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
    await broker.enqueue([an_envelope()])
    await registered(broker)  # this was no outage: another session has sent a heartbeat
    await stranger.execute("UPDATE taskflow.sessions SET beat_at = beat_at - $1, lapses_at = lapses_at - $1 WHERE id = $2", HOUR, SESSION)
    database = await stranger.fetchval("SELECT current_database()")
    await stranger.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{level}'")
    reaper = connect(store.url)
    await stranger.execute("BEGIN")
    [row] = await stranger.fetch("SELECT * FROM taskflow.claim(NULL, NULL, $1, 1, '{}', 10, 1)", SESSION)
    reaping = asyncio.create_task(reaper.upkeep(10))
    await until(lambda: stranger.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    await stranger.execute("COMMIT")
    done = await reaping
    assert (done.reaped, done.released) == (1, 1)
    await reaper.close()
    [record] = await broker.read([row["id"]])
    assert record is not None
    assert record.status is not Status.RUNNING


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
async def test_advisory_locks_of_a_stranger_stop_neither_commits_nor_verbs_nor_a_migration(
    store: Store, broker: Broker, stranger: asyncpg.Connection
) -> None:
    key = key_digest("default", "work", "k")
    async with asyncio.timeout(SOON):
        for send in ("'work'", "'work', after => '1 ms'", "'work', key => 'k'", "'work', key => 'k', on_conflict => 'replace'"):
            await stranger.execute(f"SELECT taskflow.enqueue({send})")
        await broker.enqueue([an_envelope(key=key, on_conflict=OnConflict.REPLACE)])
        await broker.upkeep(100)
        leases = await broker.claim(SESSION, 1, [], 10)
        assert len(leases) == 3
        first, *rest = leases
        assert await broker.settle([succeeded(first, follow_ups=(an_envelope(key=key),)), *map(succeeded, rest)]) == [Settled.OK] * 3
        await stranger.execute("SELECT taskflow.check_marks(NULL)")
        new = connect(f"{store.url}?namespace=another")
        await new.migrate()  # type: ignore[attr-defined]
        await new.close()


async def test_a_role_that_may_add_jobs_cannot_act_as_the_owner(store: Store, stranger: asyncpg.Connection) -> None:
    """The trigger function that runs as the schema's owner works for our table only, and no other role may call it."""
    await stranger.execute("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory; GRANT USAGE ON SCHEMA taskflow TO mallory; SET ROLE mallory")
    await stranger.execute("CREATE TEMP TABLE trap (queue text, late_priority integer, late_at bigint)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stranger.execute("CREATE TRIGGER springs AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION taskflow.on_commit()")
    await stranger.fetchval("SELECT taskflow.enqueue('work')")
    await stranger.execute("RESET ROLE; DROP TABLE trap; REVOKE USAGE ON SCHEMA taskflow FROM mallory; DROP ROLE mallory")
