"""A spoilt value affects its own job, and no other. tests/stores/test_spoilt.py spoils each value of a record in turn."""

from __future__ import annotations

import traceback
from typing import Final

import asyncpg
import pytest
from msgspec import structs

from taskflow import BrokerRefused
from taskflow.broker.protocol import Broker
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, new_id
from tests.stores.postgres.counts import SESSION
from tests.support.verdicts import failed, succeeded

REFUSED: Final = {
    "id": ("'\\x0102'", "''"),
    "status": ("-1", "8", "3", "7"),
    "queue": ("''", "repeat('x', 500)"),
    "job": ("''", "repeat('x', 1000)"),
    **dict.fromkeys(("due_at", "expires_at", "epoch"), ("-1",)),
    **dict.fromkeys(("ended_at", "fade_at"), ("1",)),
}
"""Column to values that a check of the table refuses, of a job that is ready."""

NEVER_NULL: Final = ("rev", "status", "flags", "queue", "job", "priority", "seq", "created_at", "due_at", "epoch", "awaits")


async def assert_refused(connection: asyncpg.Connection, column: str, *values: str) -> None:
    for value in values:
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await connection.execute(f"UPDATE taskflow.jobs SET {column} = {value}")


async def test_the_server_refuses_values_that_no_verb_could_work_with(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Of a job that is ready, that runs, and that has ended."""
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
    """It is no error of the store: the worker sends the batch one by one, and the one as a failure."""
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
    """The server's DETAIL has it: "Failing row contains ...". A traceback shows the driver's error too."""
    await broker.enqueue([])
    await stranger.execute("ALTER TABLE taskflow.jobs ADD CONSTRAINT no_mail CHECK (queue <> 'mail')")
    mail = an_envelope(queue="mail", job=f"secret.{new_id().hex()}")
    with pytest.raises(BrokerRefused, match="no_mail") as refused:
        await broker.enqueue([mail])
    assert isinstance(refused.value.__cause__, asyncpg.CheckViolationError)
    assert mail.job not in "".join(traceback.format_exception(refused.value))
