"""Other programs' transactions and data, and roles that may only add jobs: none harms the fleet."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import asyncpg
import pytest
from msgspec import structs

from taskflow import BrokerRefused
from taskflow.broker import topics
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.broker.url import connect
from taskflow.model.envelope import OnConflict
from taskflow.model.ids import key_digest
from taskflow.model.limits import Gate, gate_id
from taskflow.model.record import Status
from taskflow.model.schedule import Amendment, Definition, Firing, Offer
from taskflow.model.session import Beat
from taskflow.model.stored_values import LATEST
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, new_id, registered
from tests.stores.postgres.counts import SESSION, Call, Store
from tests.support.verdicts import failed, succeeded
from tests.support.waiting import until

SOON: Final = 2.0
"""Seconds: less than an operation's timeout for a lock."""

HOUR: Final = 3_600_000_000


async def test_a_row_that_another_program_locks_blocks_no_other_settlement(broker: Broker, stranger: asyncpg.Connection) -> None:
    """An operator has locked a row."""
    await broker.enqueue(envelopes(3))
    held, *others = map(succeeded, await broker.claim(SESSION, 1, [], 10))
    await stranger.execute("BEGIN")
    await stranger.fetch("SELECT * FROM taskflow.jobs WHERE id = $1 FOR UPDATE", held.id)
    assert await broker.settle([held, *others]) == [Settled.HELD_UP, Settled.OK, Settled.OK]
    assert await broker.settle([held]) == [Settled.HELD_UP]
    await stranger.execute("ROLLBACK")
    assert await broker.settle([held, *others]) == [Settled.OK] * 3


@pytest.mark.parametrize("locked", ["gates", "jobs"], ids=["the gate", "the job that waits"])
async def test_a_slot_is_passed_on_once_what_a_stranger_holds_is_free(broker: Broker, stranger: asyncpg.Connection, locked: str) -> None:
    """Other limits, and jobs without one, go on meanwhile. No slot is lost, nor given twice."""
    gates = [Gate(gate_id("limit", key), "limit", key, 1) for key in ("held", "other")]
    jobs = [an_envelope(limits=(gate,)) for gate in gates for _ in range(2)]
    await broker.enqueue([*jobs, an_envelope()])
    leases = await broker.claim(SESSION, 1, [], 10)
    held, *others = [succeeded(lease, limits=lease.envelope.limits) for lease in leases]
    assert len(others) == 2
    await stranger.execute("BEGIN")
    of = gates[0].id if locked == "gates" else jobs[1].id
    await stranger.fetch(f"SELECT * FROM taskflow.{locked} WHERE id = $1 FOR UPDATE", of)
    assert await broker.settle([held, *others]) == [Settled.HELD_UP, Settled.OK, Settled.OK]
    assert await broker.settle([held]) == [Settled.HELD_UP]
    assert [lease.envelope.id for lease in await broker.claim(SESSION, 2, [], 10)] == [jobs[3].id]
    await stranger.execute("ROLLBACK")
    assert await broker.settle([held]) == [Settled.OK]
    assert [lease.envelope.id for lease in await broker.claim(SESSION, 3, [], 10)] == [jobs[1].id]


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


async def test_a_role_that_may_add_jobs_wakes_workers_and_cannot_act_as_the_owner(broker: Broker, stranger: asyncpg.Connection) -> None:
    """The trigger function that runs as the schema's owner works for our table only, and no other role may call it."""
    await stranger.execute("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory; GRANT USAGE ON SCHEMA taskflow TO mallory; SET ROLE mallory")
    await stranger.execute("CREATE TEMP TABLE trap (queue text, late_priority integer, late_at bigint)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stranger.execute("CREATE TRIGGER springs AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION taskflow.on_commit()")
    with broker.listen([topics.queue("default")]) as waiter:
        await waiter.wait(0.5)  # it listens now
        await stranger.fetchval("SELECT taskflow.enqueue('work')")
        assert await waiter.wait(SOON)
    await stranger.execute("RESET ROLE; DROP TABLE trap; REVOKE USAGE ON SCHEMA taskflow FROM mallory; DROP ROLE mallory")


REFUSED: Final = {
    "id": ("'\\x0102'", "''"),
    "status": ("-1", "8", "3", "7"),
    "queue": ("''", "repeat('x', 500)"),
    "job": ("''", "repeat('x', 1000)"),
    **dict.fromkeys(("due_at", "expires_at", "epoch"), ("-1",)),
    **dict.fromkeys(("ended_at", "fade_at"), ("1",)),
}
"""For columns of a ready job, values that a check of the table refuses."""

NEVER_NULL: Final = ("rev", "status", "flags", "queue", "job", "priority", "seq", "created_at", "due_at", "epoch", "awaits")


async def assert_refused(connection: asyncpg.Connection, column: str, *values: str) -> None:
    for value in values:
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await connection.execute(f"UPDATE taskflow.jobs SET {column} = {value}")


async def test_the_server_refuses_values_that_no_verb_could_work_with(broker: Broker, stranger: asyncpg.Connection) -> None:
    """The jobs are ready, running, and ended."""
    await broker.enqueue([an_envelope()])
    for column, values in REFUSED.items():
        await assert_refused(stranger, column, *values)
    for column in NEVER_NULL:
        await assert_refused(stranger, column, "NULL")
    [lease] = await broker.claim(SESSION, 1, [], 10)
    for column in ("session", "claim"):
        await assert_refused(stranger, column, "NULL", "'\\x00'")
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    for column, values in {"ended_at": ("NULL",), "fade_at": ("NULL", "-1"), "status": ("0", "5")}.items():
        await assert_refused(stranger, column, *values)


@pytest.mark.parametrize(("field", "value"), [("keep_for", float("nan")), ("keep_for", 1e300), ("ran_for", 1e300), ("ran_for", -9.223e12)])
async def test_a_verdict_that_cannot_be_written_fails_alone(broker: Broker, field: str, value: float) -> None:
    """It is no error of the store: the worker sends the batch one by one, and that one as a failure."""
    await broker.enqueue(envelopes(3))
    leases = await broker.claim(SESSION, 1, [], 10)
    good, bad, other = (succeeded(lease) for lease in leases)
    bad = structs.replace(bad, **{field: value})
    for batch in ([good, bad, other], [bad]):
        with pytest.raises((ValueError, OverflowError)):
            await broker.settle(batch)
    assert await broker.settle([good]) == [Settled.OK]
    instead = failed(leases[1])
    assert await broker.settle([structs.replace(instead, keep_for=bad.keep_for), other]) == [Settled.OK] * 2


@pytest.mark.parametrize("n", [-253_402_300_799_999_999, 253_402_300_799_999_999])
async def test_counts_at_their_limits_stay_there(broker: Broker, stranger: asyncpg.Connection, n: int) -> None:
    await broker.enqueue([an_envelope()])
    with pytest.raises(asyncpg.CheckViolationError):
        await stranger.execute("INSERT INTO taskflow.totals VALUES ('default', 'enqueue', $1)", (1 << 63) - 1)
    await stranger.execute("INSERT INTO taskflow.totals VALUES ('default', 'enqueue', $1)", n)
    await stranger.execute("INSERT INTO taskflow.tally (queue, event, n) SELECT 'default', 'enqueue', $1 FROM generate_series(1, 100)", n)
    assert (await broker.admin.metrics()).totals["default"]["enqueue"] == n
    await broker.upkeep(100)
    assert (await broker.admin.metrics()).totals["default"]["enqueue"] == n
    assert len(await broker.claim(SESSION, 1, [], 10)) == 1


async def test_the_row_that_the_server_refuses_is_in_no_message(broker: Broker, stranger: asyncpg.Connection) -> None:
    """The server's DETAIL has it: "Failing row contains ...". A traceback also shows the driver's error."""
    await broker.enqueue([])
    await stranger.execute("ALTER TABLE taskflow.jobs ADD CONSTRAINT no_mail CHECK (queue <> 'mail')")
    mail = an_envelope(queue="mail", job=f"secret.{new_id().hex()}")
    with pytest.raises(BrokerRefused, match="no_mail") as refused:
        await broker.enqueue([mail])
    assert isinstance(refused.value.__cause__, asyncpg.CheckViolationError)
    assert mail.job not in "".join(traceback.format_exception(refused.value))


def a_definition(name: str, version: int = 1) -> Definition:
    return Definition(name, bytes([version]) * 16, b"body")


def a_firing(offer: Offer, **more: Any) -> Firing:
    at = offer.now + 60_000_000
    return Firing(name=offer.name, digest=offer.digest, expected=offer.next_at, next_at=at, offer_at=at, envelopes=(an_envelope(**more),))


@pytest.mark.parametrize("verb", ["define", "fire", "fire with keys"])
async def test_several_schedules_and_keys_are_locked_in_one_order(broker: Broker, stranger: asyncpg.Connection, verb: str) -> None:
    """Otherwise a transaction that locks them in that order would wait for an operation that waits for it."""
    table, ids = "schedules", [b"a", b"b"]
    assert await broker.define([a_definition("a"), a_definition("b")]) == [True] * 2
    offers = sorted((await broker.upkeep(10)).offers, key=lambda offer: offer.name, reverse=True)
    firings = [a_firing(offer) for offer in offers]
    if verb == "fire with keys":
        table, ids = "keys", [bytes([number]) * 16 for number in (1, 2)]
        await broker.enqueue([an_envelope(key=key) for key in ids])
        firings = [a_firing(offer, key=key, on_conflict=OnConflict.REPLACE) for offer, key in zip(offers, ids[::-1], strict=True)]
    lock = f"SELECT * FROM taskflow.{table} WHERE id = $1 FOR UPDATE"
    await stranger.execute("BEGIN")
    await stranger.fetch(lock, ids[0])
    call = broker.define([a_definition("b", 2), a_definition("a", 2)]) if verb == "define" else broker.fire(firings)
    waits: asyncio.Task[Sequence[Added | Refused | bool | None]] = asyncio.create_task(call)
    blocked = "EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    await until(lambda: stranger.fetchval(f"SELECT pg_stat_clear_snapshot() IS NOT NULL AND {blocked}"))
    async with asyncio.timeout(0.7):  # less than what the server takes to look for deadlocks
        await stranger.fetch(lock, ids[1])
    await stranger.execute("COMMIT")
    assert all(await waits)


async def test_upkeep_and_beats_do_not_wait_for_a_schedule_that_somebody_has_locked(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Other due schedules are offered. The locked one is offered, or put to sleep, once it is free."""
    await broker.define([a_definition("locked"), a_definition("other")], SESSION)
    await stranger.execute("BEGIN; SELECT * FROM taskflow.schedules WHERE id = 'locked' FOR UPDATE")
    async with asyncio.timeout(SOON):
        [offer] = (await broker.upkeep(10)).offers
        assert offer.name == "other"
        await broker.beat(Beat(session=SESSION, leaving=True))
        await broker.upkeep(10)
    assert [record.asleep_since is None for record in await broker.admin.schedules()] == [True, False]
    await stranger.execute("ROLLBACK")
    assert (await broker.upkeep(10)).offers == ()
    assert [record.asleep_since is None for record in await broker.admin.schedules()] == [False, False]


STATES: Final = ("NULL", "''", "'\\xc1'", "decode(repeat('00', 1000), 'hex')", "decode(repeat('c0', 80000000), 'hex')")

ADMITTED: Final = (
    *(f"offer_at = {n}" for n in (-(1 << 63), 0, LATEST, (1 << 63) - 1, "NULL")),
    *(f"is_paused = {n}" for n in (-1, 1, 2)),
    *(f"rev = {n}" for n in (0, -(1 << 63))),
    *(f"state = {state}" for state in STATES),
    "sent = state, content = state",
)


@pytest.mark.parametrize("change", ADMITTED, ids=lambda change: change[:30])
async def test_a_value_that_the_server_admits_stops_no_schedule_beside_it(
    broker: Broker, stranger: asyncpg.Connection, change: str
) -> None:
    """It stops neither upkeep, nor the listing, nor the end of a session that declares them."""
    await broker.define([a_definition("spoilt"), a_definition("other")], SESSION)
    assert await stranger.execute(f"UPDATE taskflow.schedules SET {change} WHERE id = 'spoilt'") == "UPDATE 1"

    offers = {offer.name: offer for _ in range(2) for offer in (await broker.upkeep(10)).offers}
    answers = await broker.fire([a_firing(offer) for offer in offers.values()])

    assert isinstance(answers[list(offers).index("other")], Added)
    assert "other" in {record.name for record in await broker.admin.schedules()}
    for amendment in (Amendment.PAUSE, Amendment.RESUME):
        assert await broker.admin.amend_schedule("other", amendment)
        await broker.admin.amend_schedule("spoilt", amendment)
    await broker.define([a_definition(name, 2) for name in ("spoilt", "other")], SESSION)
    [record] = await broker.admin.schedules(["other"])
    assert record.digest == a_definition("other", 2).digest
    await broker.beat(Beat(session=SESSION, leaving=True))
    await broker.upkeep(10)
    [record] = await broker.admin.schedules(["other"])
    assert record.asleep_since is not None


async def test_a_store_without_schedules_costs_upkeep_and_a_look_one_probe_each_time(store: Store) -> None:
    store.counted = "^(schedules|declared)(_|$)"
    calls: Sequence[Call] = (lambda broker: broker.upkeep(10), lambda broker: broker.beat(Beat(session=SESSION, looks=True)))
    for call in calls:
        assert await store.costs(call, times=2) == [{"schedules_offers": (1, 0)}] * 2
