"""A spoilt value affects its own job, and no other. tests/conformance/test_spoilt_rows.py spoils values at random."""

from __future__ import annotations

import traceback
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest
from msgspec import structs

from taskflow import BrokerRefused, Status
from taskflow.broker.console import View
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.job_schema import BY_NAME
from taskflow.model.record import Record
from taskflow.model.session import Session
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, new_id
from tests.support.listing import listed
from tests.support.postgres import shared_postgres
from tests.support.verdicts import failed, handed_back, retried, succeeded

REFUSED: Final[dict[str, tuple[str, ...]]] = {
    "id": ("'\\x0102'", "''"),
    "status": ("NULL", "-1", "8", "3", "0", "7"),
    "queue": ("NULL", "''"),
    "job": ("NULL", "''"),
    "priority": ("NULL", "-32768", "32767"),
    "seq": ("NULL", "0", "-9223372036854775808"),
    "created_at": ("NULL", "-1", "9223372036854775807"),
    "due_at": ("NULL", "-9223372036854775808", "9223372036854775807"),
    "epoch": ("NULL", "-1", "2147483647"),
    "failures": ("NULL", "2147483647"),
    "crashes": ("NULL", "2147483647"),
    "snoozes": ("NULL", "2147483647"),
    "hand_backs": ("NULL", "-2147483648"),
    "awaits": ("-2147483648", "2147483647"),
    "joins": ("convert_to(repeat('x', 1000000), 'UTF8')",),
    "behind": ("'\\x00'",),
    "session": ("'\\x00'",),
    "expires_at": ("9223372036854775807",),
    "parked_at": ("-9223372036854775808",),
    "ended_at": ("1",),
    "fade_at": ("1",),
}
"""Column to values that its domain or a check of the table refuses, of a job that is ready."""


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


async def spoil(connection: asyncpg.Connection, victim: bytes, column: str, value: str) -> None:
    assert await connection.execute(f"UPDATE taskflow.jobs SET {column} = {value} WHERE id = $1", victim) == "UPDATE 1"


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in REFUSED.items() for value in values])
async def test_the_server_refuses_a_value_that_no_verb_could_work_with(
    broker: Broker, stranger: asyncpg.Connection, column: str, value: str
) -> None:
    """The job and its neighbours are leased, settled and counted as ever."""
    envelopes = [an_envelope() for _ in range(3)]
    await broker.enqueue(envelopes)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await spoil(stranger, envelopes[1].id, column, value)
    leases = await broker.claim(SESSION, 1, [], 10)
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * 3
    await broker.upkeep(100)
    assert await counts(broker) == {Status.SUCCEEDED: 3}


@pytest.mark.parametrize(
    ("column", "value"), [("session", "NULL"), ("request", "NULL"), ("request", "-1"), ("number", "NULL"), ("claimed_steady", "NULL")]
)
async def test_the_server_refuses_a_run_that_nobody_could_release(
    broker: Broker, stranger: asyncpg.Connection, column: str, value: str
) -> None:
    envelope = an_envelope()
    await broker.enqueue([envelope])
    await broker.claim(SESSION, 1, [], 10)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await spoil(stranger, envelope.id, column, value)


@pytest.mark.parametrize("change", ["ended_at = NULL", "fade_at = NULL", "fade_at = 9223372036854775807", "status = 0"])
async def test_the_server_refuses_an_end_without_its_time(broker: Broker, stranger: asyncpg.Connection, change: str) -> None:
    await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(SESSION, 1, [], 10)
    await broker.settle([succeeded(lease)])
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await spoil(stranger, lease.envelope.id, *change.split(" = "))


async def counts(broker: Broker) -> dict[Status, int]:
    [queue] = [queue for queue in await broker.console.queues() if queue.name == "default"]
    return {status: number for status, number in queue.counts.items() if number}


async def test_an_instant_beyond_the_year_9999_is_that_of_the_last_moment(broker: Broker) -> None:
    envelope = an_envelope(at=(1 << 63) - 1)
    await broker.enqueue([envelope])
    [record] = await broker.read([envelope.id])
    assert record is not None
    assert record.due_at.year == 9999
    assert await counts(broker) == {Status.SCHEDULED: 1}


@pytest.mark.parametrize("of", ["extras", "payload", "errors", "progress", "reason", "worker"])
async def test_of_a_value_that_is_too_long_only_the_length_is_looked_at(broker: Broker, stranger: asyncpg.Connection, of: str) -> None:
    envelopes = [an_envelope() for _ in range(3)]
    await broker.enqueue(envelopes)
    size = 8_000_000 if BY_NAME[of].kind.most < 8_000_000 else 80_000_000
    await spoil(stranger, envelopes[1].id, of, f"convert_to(repeat('x', {size}), 'UTF8')")
    tracemalloc.start()
    try:
        records = await broker.read([envelope.id for envelope in envelopes])
        leases = await broker.claim(SESSION, 1, [], 10)
        found = await listed(broker.console)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()

    assert [record.unreadable[0].column if record and record.unreadable else None for record in records] == [None, of, None]
    assert [bool(lease.unreadable) for lease in leases] == [False, of in ("extras", "payload"), False]
    assert len(found) == 3
    settlements = [failed(lease) if lease.unreadable else succeeded(lease) for lease in leases]
    assert await broker.settle(settlements) == [Settled.OK] * 3


@pytest.mark.parametrize("verdict", [failed, retried])
async def test_a_settlement_is_written_beside_errors_that_cannot_be_read(
    broker: Broker, stranger: asyncpg.Connection, verdict: Any
) -> None:
    envelope = an_envelope()
    await broker.enqueue([envelope])
    [lease] = await broker.claim(SESSION, 1, [], 10)
    await spoil(stranger, envelope.id, "errors", "'\\xc1ff'")
    assert await broker.settle([verdict(lease)]) == [Settled.OK]
    [record] = await broker.read([envelope.id])
    assert record is not None
    assert [field.column for field in record.unreadable] == ["errors"]


@pytest.mark.parametrize(("field", "value"), [("keep_for", float("nan")), ("ran_for", 1e300), ("ran_for", -9.223e12)])
async def test_a_verdict_that_cannot_be_written_fails_alone(broker: Broker, field: str, value: float) -> None:
    """It is no error of the store: the worker sends the batch one by one, and the one as a failure."""
    await broker.enqueue([an_envelope() for _ in range(3)])
    leases = await broker.claim(SESSION, 1, [], 10)
    good, bad, other = (succeeded(lease) for lease in leases)
    bad = structs.replace(bad, **{field: value})
    for batch in ([good, bad, other], [bad]):
        with pytest.raises((ValueError, OverflowError)):
            await broker.settle(batch)
    assert await broker.settle([good]) == [Settled.OK]
    instead = failed(leases[1])
    assert await broker.settle([structs.replace(instead, keep_for=bad.keep_for), other]) == [Settled.OK] * 2


@pytest.mark.parametrize("keep_for", [1e300, 9e12])
async def test_a_result_is_kept_for_a_hundred_years_at_most(broker: Broker, keep_for: float) -> None:
    await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(SESSION, 1, [], 10)
    assert await broker.settle([structs.replace(succeeded(lease), keep_for=keep_for)]) == [Settled.OK]
    await broker.upkeep(100)
    [record] = await broker.read([lease.envelope.id])
    assert record is not None
    assert record.status is Status.SUCCEEDED


# --- sessions --------------------------------------------------------------------------------------------------

NUMBERS: Final = ("NULL", "9223372036854775807", "-9223372036854775808")

REFUSED_OF_SESSIONS: Final = dict.fromkeys(("ttl", "beat_at", "recent_from", "registered_at"), NUMBERS) | {
    "dead_at": NUMBERS[1:],
    "older_requests": ("NULL",),
    "is_spared": ("NULL",),
    "is_released": ("NULL", "true"),
    "about": ("NULL", "convert_to(repeat('x', 2000000), 'UTF8')"),
    "name": ("NULL", "repeat('x', 2000000)"),
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in REFUSED_OF_SESSIONS.items() for value in values])
async def test_the_server_refuses_a_session_that_nobody_could_read(
    broker: Broker, stranger: asyncpg.Connection, column: str, value: str
) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await stranger.execute(f"UPDATE taskflow.sessions SET {column} = {value} WHERE id = $1", SESSION)


async def test_a_run_of_a_session_that_nobody_knows_is_released(broker: Broker, stranger: asyncpg.Connection) -> None:
    envelope = an_envelope()
    await broker.enqueue([envelope])
    await broker.claim(SESSION, 1, [], 10)
    await spoil(stranger, envelope.id, "session", f"'\\x{new_id().hex()}'")
    await stranger.execute("SELECT taskflow.check_marks(NULL)")
    [record] = await broker.read([envelope.id])
    assert record is not None
    assert record.status is Status.READY


# --- text that is no UTF-8 -----------------------------------------------------------------------------------------


@pytest.fixture
async def ascii_database() -> AsyncIterator[str]:
    """In SQL_ASCII, which takes any bytes for text."""
    server = shared_postgres()
    name = server.new_database() + "_ascii"
    server.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    yield name
    server.drop_database(name)


BAD: Final = "convert_from('\\x6e61efff', 'SQL_ASCII')"
"""A text of these bytes."""


@pytest.mark.parametrize("column", ["job", "queue"])
async def test_a_name_that_is_no_utf8_spoils_its_own_job(ascii_database: str, column: str) -> None:
    server = shared_postgres()
    broker = connect(server.url(ascii_database))
    await broker.register(Session(id=SESSION, name="it"))
    envelopes = [an_envelope() for _ in range(3)]
    await broker.enqueue(envelopes)
    server.execute(f"UPDATE taskflow.jobs SET {column} = {BAD} WHERE id = '\\x{envelopes[1].id.hex()}'", ascii_database)
    server.execute("SELECT convert_to(taskflow.check_marks(NULL), 'SQL_ASCII')", ascii_database)

    records = await broker.read([envelope.id for envelope in envelopes])
    assert [unreadable_of(record) for record in records] == [[], [column], []]
    leases = await broker.claim(SESSION, 1, [], 10)
    assert {lease.envelope.id: [field.column for field in lease.unreadable] for lease in leases} == {
        envelope.id: [column] if number == 1 else [] for number, envelope in enumerate(envelopes)
    }
    assert await broker.settle([failed(lease) if lease.unreadable else succeeded(lease) for lease in leases]) == [Settled.OK] * 3
    assert len(await listed(broker.console)) == 3
    await broker.console.metrics()
    await broker.console.queues()
    await broker.upkeep(100)
    assert await broker.console.purge(View()) == 3
    await broker.close()


async def test_a_session_whose_name_is_no_utf8_works_on(ascii_database: str) -> None:
    server = shared_postgres()
    broker = connect(server.url(ascii_database))
    await broker.register(Session(id=SESSION, name="it"))
    server.execute(f"UPDATE taskflow.sessions SET name = {BAD}", ascii_database)
    await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(SESSION, 1, [], 10)
    assert len(await broker.console.workers()) == 1
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    await broker.close()


def unreadable_of(record: Record | None) -> list[str]:
    assert record is not None
    return [field.column for field in record.unreadable]


@pytest.mark.parametrize("n", [-253_402_300_799_999_999, 253_402_300_799_999_999])
async def test_counts_at_their_limits_stay_there(broker: Broker, stranger: asyncpg.Connection, n: int) -> None:
    await broker.enqueue([an_envelope()])
    with pytest.raises(asyncpg.CheckViolationError):
        await stranger.execute("INSERT INTO taskflow.totals VALUES ('default', 'enqueue', $1)", (1 << 63) - 1)
    await stranger.execute("INSERT INTO taskflow.totals VALUES ('default', 'enqueue', $1)", n)
    await stranger.execute("INSERT INTO taskflow.tally (queue, event, n) SELECT 'default', 'enqueue', $1 FROM generate_series(1, 100)", n)
    assert (await broker.console.metrics()).totals["default"]["enqueue"] == n
    await broker.upkeep(100)
    assert (await broker.console.metrics()).totals["default"]["enqueue"] == n
    assert len(await broker.claim(SESSION, 1, [], 10)) == 1


async def test_the_row_that_the_server_refuses_is_in_no_message(broker: Broker, stranger: asyncpg.Connection) -> None:
    """The server's DETAIL has it: "Failing row contains ...". A traceback shows the driver's error too."""
    await broker.enqueue([])
    await stranger.execute("ALTER TABLE taskflow.jobs ADD CONSTRAINT no_mail CHECK (queue <> 'mail')")
    mail = an_envelope(queue="mail", job=f"secret.{new_id().hex()}")
    with pytest.raises(BrokerRefused, match="no_mail") as refused:
        await broker.enqueue([mail])
    assert isinstance(refused.value.__cause__, asyncpg.CheckViolationError)
    assert mail.job not in "".join(traceback.format_exception(refused.value))


HUGE: Final = 62_000_000


@pytest.mark.parametrize("column", ["payload", "extras", "errors", "worker", "progress", "cancel_requested"])
async def test_no_verb_writes_again_what_is_too_long(broker: Broker, stranger: asyncpg.Connection, column: str) -> None:
    """It stays where it is stored, or is dropped; settlements, cancellations and retries write their own few bytes."""
    envelopes = [an_envelope() for _ in range(5)]
    await broker.enqueue(envelopes)
    failing, trying, back, *_ = await broker.claim(SESSION, 1, [], 10)
    await stranger.execute(f"ALTER TABLE taskflow.jobs ALTER COLUMN {column} SET STORAGE EXTERNAL")
    value = f"repeat('x', {HUGE})" if column == "cancel_requested" else f"convert_to(repeat('x', {HUGE}), 'UTF8')"
    for envelope in envelopes:
        await spoil(stranger, envelope.id, column, value)
    before = await stranger.fetchval("SELECT pg_current_wal_lsn()")
    assert await broker.settle([failed(failing), retried(trying), handed_back(back)]) == [Settled.OK] * 3
    await broker.cancel([envelope.id for envelope in envelopes])
    await broker.console.retry([failing.envelope.id])
    assert len(await listed(broker.console)) == 5
    assert await stranger.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", before) < HUGE / 4
