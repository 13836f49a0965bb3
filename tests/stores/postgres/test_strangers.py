"""Transactions of others that stay open, and roles that may do no more than add jobs: neither harms the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest
from msgspec import structs

from taskflow import BrokerUnavailable, JobFailed, Worker, job
from taskflow.app.app import default_app
from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.ids import key_digest
from taskflow.model.record import Status
from taskflow.model.session import Beat, Report, Session
from taskflow.model.verdict import Settled
from taskflow.worker.events import SettlementBlocked, WorkerEvent
from taskflow.worker.options import WorkerOptions
from taskflow.worker.settler import HELD_UP_PAUSE
from tests.stores.postgres.counts import SESSION, Store, new_id
from tests.support.verdicts import failed, succeeded

SOON: Final = 2.0
"""Seconds. Less than those after which a verb gives up waiting for a lock."""

SECOND: Final = 1_000_000

TIMEOUT: Final = 60.0
"""Seconds. What takes this long has hung."""


async def test_a_beat_does_not_wait_for_a_transaction_that_has_a_key(broker: Broker, stranger: asyncpg.Connection) -> None:
    """The job runs; somebody replaces it, and does not commit. Reports of it may wait, the beat and everybody else's may not."""
    await stranger.fetchval("SELECT taskflow.enqueue('work', key => 'k')")
    [lease] = await broker.claim(SESSION, 1, [], 10)
    await stranger.execute("BEGIN; SELECT taskflow.enqueue('work', key => 'k', on_conflict => 'replace')")
    other = Session(id=new_id(), name="other")
    await broker.register(other)

    async with asyncio.timeout(SOON):
        await broker.beat(Beat(session=SESSION, claims=(lease.claim,), seen=1, reports=(Report(lease.claim, 1.0),)))
        await broker.beat(Beat(session=other.id, claims=(), seen=0))

    await stranger.execute("ROLLBACK")


async def test_a_sender_whose_key_a_transaction_has_is_told_so(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Its second try gets no answer in the time that is left, which says less than the first."""

    @job(name="tests.strangers.sent")
    async def sent() -> None: ...

    await stranger.execute("BEGIN; SELECT taskflow.enqueue('tests.strangers.sent', key => 'k')")
    app = default_app()
    with app.using(broker):
        app.configure(enqueue_timeout=4.0)
        with pytest.raises(
            BrokerUnavailable, match=r"another open transaction holds a lock that is needed here \(.*\), on a key for example"
        ):
            await sent.options(key="k").delay()

    await stranger.execute("ROLLBACK")


@pytest.mark.parametrize("holds", ["what has expired", "a dead session's lease"])
async def test_upkeep_does_not_wait_for_a_transaction_that_has_a_key(broker: Broker, stranger: asyncpg.Connection, holds: str) -> None:
    """Rows that another transaction has locked wait for the next call; the rest is done."""
    await stranger.fetchval("SELECT taskflow.enqueue('work', key => 'k', expires => '1 millisecond')")
    if holds == "a dead session's lease":
        await stranger.execute("UPDATE taskflow.jobs SET expires_at = NULL")
        await broker.claim(SESSION, 1, [], 10)
        await stranger.execute("UPDATE taskflow.sessions SET beat_at = beat_at - 3600000000")
    await stranger.execute("BEGIN; SELECT taskflow.enqueue('work', key => 'k', on_conflict => 'replace')")
    due = Envelope(id=new_id(), job="work", payload=b"\x01", after=0.001)
    await broker.enqueue([due])
    await asyncio.sleep(0.01)

    async with asyncio.timeout(SOON):
        assert (await broker.upkeep(10)).readied == 1

    await stranger.execute("ROLLBACK")
    done = await broker.upkeep(10)
    assert done.expired + done.released == 1


async def test_settlements_of_others_do_not_wait_for_a_transaction_that_has_a_key(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Successes are there at once; what else there is, as soon as the batch has waited for the key. That alone is to be sent again."""
    await stranger.fetchval("SELECT taskflow.enqueue('work', key => 'k')")
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01") for _ in range(2)])
    keyed, plain, wrong = await broker.claim(SESSION, 1, [], 10)
    batch = [succeeded(keyed), succeeded(plain), failed(wrong)]
    await stranger.execute("BEGIN; SELECT taskflow.enqueue('work', key => 'k', on_conflict => 'replace')")
    settling = asyncio.create_task(broker.settle(batch))

    with broker.listen([topics.job(plain.envelope.id)]) as nudges:
        assert await status_of(broker, plain) is Status.SUCCEEDED or await nudges.wait(SOON)
    assert await status_of(broker, plain) is Status.SUCCEEDED
    assert await settling == [Settled.HELD_UP, Settled.OK, Settled.OK]
    assert await status_of(broker, wrong) is Status.FAILED
    assert await status_of(broker, keyed) is Status.RUNNING

    await stranger.execute("ROLLBACK")
    assert await broker.settle(batch) == [Settled.OK] * 3


@pytest.mark.parametrize("holds", ["the row of a success", "the key of a follow-up"])
async def test_what_a_stranger_holds_harms_no_other_settlement(broker: Broker, stranger: asyncpg.Connection, holds: str) -> None:
    """An operator's lock on a row, or a key under which somebody is about to add a job."""
    ids = sorted(new_id() for _ in range(3))
    await broker.enqueue([Envelope(id=job_id, job="work", payload=b"\x01") for job_id in ids])
    leases = {lease.envelope.id: lease for lease in await broker.claim(SESSION, 1, [], 10)}
    held, *others = (succeeded(leases[job_id]) for job_id in ids)
    await stranger.execute("BEGIN")
    if holds == "the row of a success":
        await stranger.fetch("SELECT * FROM taskflow.jobs WHERE id = $1 FOR UPDATE", held.id)
    else:
        following = Envelope(id=new_id(), job="work", payload=b"\x01", key=key_digest("default", "work", "k"))
        held = structs.replace(held, follow_ups=(following,))
        await stranger.fetchval("SELECT taskflow.enqueue('work', key => 'k')")

    assert await broker.settle([held, *others]) == [Settled.HELD_UP, Settled.OK, Settled.OK]
    assert await broker.settle([held]) == [Settled.HELD_UP]

    await stranger.execute("ROLLBACK")
    assert await broker.settle([held, *others]) == [Settled.OK] * 3


async def test_a_worker_goes_on_beside_a_job_whose_end_cannot_be_written_yet(broker: Broker, stranger: asyncpg.Connection) -> None:
    """With one slot, and jobs whose ends are written as that one's is. That it is held up is told once; it is written when it can be."""
    begun, release = asyncio.Event(), asyncio.Event()
    held_up: list[SettlementBlocked] = []

    @job(name="tests.strangers.waits")
    async def waits() -> str:
        begun.set()
        await release.wait()
        return "in the end"

    @job(name="tests.strangers.fails", max_attempts=1)
    async def fails() -> None:
        raise ValueError("as it must")

    def hear(event: WorkerEvent) -> None:
        if isinstance(event, SettlementBlocked):
            held_up.append(event)

    with default_app().using(broker):
        async with asyncio.timeout(TIMEOUT), Worker(options=WorkerOptions(concurrency=1, subscribers=(hear,))):
            keyed = await waits.options(key="k").delay()
            await begun.wait()
            await stranger.execute("BEGIN; SELECT taskflow.enqueue('tests.strangers.waits', key => 'k', on_conflict => 'replace')")
            others = [await fails.delay() for _ in range(20)]
            release.set()
            for other in others:
                with pytest.raises(JobFailed):
                    await other.result()
            assert (await keyed.status()) is Status.RUNNING
            await asyncio.sleep(HELD_UP_PAUSE)
            await stranger.execute("ROLLBACK")
            assert await keyed.result() == "in the end"
    assert len(held_up) == 1


async def status_of(broker: Broker, lease: Lease) -> Status | None:
    [record] = await broker.read([lease.envelope.id])
    return None if record is None else record.status


async def test_leases_of_a_claim_that_was_under_way_when_its_session_was_reaped_are_released(
    store: Store, broker: Broker, stranger: asyncpg.Connection
) -> None:
    """At "repeatable read" too, where upkeep does not see in that call what the claim has leased."""
    envelope = Envelope(id=new_id(), job="work", payload=b"\x01")
    await broker.enqueue([envelope])
    now = await stranger.fetchval("SELECT taskflow.wall(NULL)")
    reaper = await asyncpg.connect(store.url, server_settings={"default_transaction_isolation": "repeatable read"})
    upkeep = "SELECT released FROM taskflow.upkeep($1, NULL, 10)"
    await stranger.execute("BEGIN")
    await stranger.fetch("SELECT * FROM taskflow.claim(NULL, NULL, $1, 1, '{}', 10)", SESSION)
    reaping = asyncio.create_task(reaper.fetchval(upkeep, now + 30 * SECOND))
    await asyncio.sleep(0.3)
    await stranger.execute("COMMIT")
    await reaping
    for seconds in (31, 60, 61, 300, 301):
        await reaper.fetchval(upkeep, now + seconds * SECOND)
    await reaper.close()
    [record] = await broker.read([envelope.id])
    assert record is not None
    assert record.status is not Status.RUNNING


LOCKS: Final = """
    SELECT taskflow.listener_registration_lock() UNION ALL SELECT taskflow.key_lock(taskflow.key_digest('default', 'work', 'k'))
    UNION ALL SELECT taskflow.mark_lock(kind, queue, rank::integer)
    FROM (
        VALUES ('ready', 'default', 0), ('idle', 'default', 0), ('due', '', 0), ('expiry', '', 0), ('fade', '', 0), ('tally', '', 0)
    ) AS m (kind, queue, rank)
    UNION ALL SELECT hashtextextended('"taskflow".' || name, 0)
    FROM unnest(ARRAY['upkeep', 'check_marks', 'check_marks_turn', 'notifying queue:default', 'notifying due']) AS name
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
        await stranger.execute("BEGIN; SELECT taskflow.lock_keys('default', 'work', '{k}'); COMMIT")
        await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", key=key, on_conflict=OnConflict.REPLACE)])
        await broker.upkeep(100)
        leases = await broker.claim(SESSION, 1, [], 10)
        assert len(leases) == 3
        following = Envelope(id=new_id(), job="work", payload=b"\x01", key=key)
        first, *rest = (succeeded(lease) for lease in leases)
        assert await broker.settle([structs.replace(first, follow_ups=(following,)), *rest]) == [Settled.OK] * 3
        await stranger.execute("SELECT taskflow.check_marks(NULL)")


@pytest.mark.usefixtures("locker")
async def test_upkeep_beside_advisory_locks_of_a_stranger_reaps(broker: Broker, stranger: asyncpg.Connection) -> None:
    await stranger.execute("SELECT taskflow.enqueue('work', key => 'k')")
    [lease] = await broker.claim(SESSION, 1, [], 10)
    await stranger.execute("UPDATE taskflow.sessions SET beat_at = beat_at - 3600000000")
    for _ in range(2):  # it has one more ttl, because nobody else has beaten
        await broker.upkeep(100)
        await stranger.execute("UPDATE taskflow.sessions SET beat_at = beat_at - 3600000000")
    assert await status_of(broker, lease) is Status.READY


@pytest.mark.usefixtures("locker")
async def test_advisory_locks_of_a_stranger_stop_no_migration(store: Store) -> None:
    broker = connect(f"{store.url}?namespace=another")
    async with asyncio.timeout(SOON):
        assert await broker.enqueue([]) == []
        await broker.migrate()  # type: ignore[attr-defined]
    await broker.close()


async def test_a_wait_for_a_key_ends_if_a_stranger_takes_its_lock_next(store: Store, stranger: asyncpg.Connection) -> None:
    """A transaction holds the key, and a stranger waits for its lock before we do."""
    await stranger.execute("DROP ROLE IF EXISTS locker; CREATE ROLE locker LOGIN")
    number = await stranger.fetchval("SELECT taskflow.key_lock(taskflow.key_digest('default', 'work', 'k'))")
    locker, sender = await asyncpg.connect(store.url, user="locker"), await asyncpg.connect(store.url)
    await stranger.execute("BEGIN; SELECT taskflow.enqueue('work', key => 'k')")
    locking = asyncio.create_task(locker.execute("SELECT pg_advisory_lock($1::bigint)", number))
    await until_blocked(stranger, 1)
    sending = asyncio.create_task(sender.execute("SELECT taskflow.enqueue('work', key => 'k', on_conflict => 'replace')"))
    await until_blocked(stranger, 2)
    await stranger.execute("COMMIT")
    async with asyncio.timeout(10.0):
        await locking
        await sending
    await locker.close()
    await sender.close()
    await stranger.execute("DROP ROLE locker")


async def until_blocked(connection: asyncpg.Connection, number: int) -> None:
    while await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") < number:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_a_role_that_may_add_jobs_cannot_act_as_the_owner(store: Store, stranger: asyncpg.Connection) -> None:
    """The trigger function that runs as the schema's owner works for our table only, and no other role may call it."""
    await stranger.execute("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory; GRANT USAGE ON SCHEMA taskflow TO mallory; SET ROLE mallory")
    await stranger.execute("CREATE TEMP TABLE trap (queue text, late_priority integer, late_at bigint)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stranger.execute("CREATE TRIGGER springs AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION taskflow.on_commit()")
    await stranger.fetchval("SELECT taskflow.enqueue('work')")
    await stranger.execute("RESET ROLE; DROP TABLE trap; REVOKE USAGE ON SCHEMA taskflow FROM mallory; DROP ROLE mallory")
