"""A spoilt value affects its own job, and no other. tests/stores/test_spoilt.py spoils each value of a record in turn."""

from __future__ import annotations

import traceback
from typing import Any, Final

import asyncpg
import pytest
from msgspec import structs

from taskflow import BrokerRefused
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.verdict import Settled
from tests.stores.postgres.counts import SESSION, new_id
from tests.support.verdicts import failed, succeeded

REFUSED: Final[dict[str, tuple[str, ...]]] = {
    "id": ("'\\x0102'", "''"),
    "rev": ("NULL",),
    "status": ("NULL", "-1", "8", "3", "7"),
    "flags": ("NULL",),
    "queue": ("NULL", "''", "repeat('x', 500)"),
    "job": ("NULL", "''", "repeat('x', 1000)"),
    "priority": ("NULL",),
    "seq": ("NULL",),
    "created_at": ("NULL",),
    "due_at": ("NULL", "-1"),
    "expires_at": ("-1",),
    "epoch": ("NULL", "-1"),
    "awaits": ("NULL",),
    "ended_at": ("1",),
    "fade_at": ("1",),
}
"""Column to values that a check of the table refuses, of a job that is ready."""


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


async def spoil(connection: asyncpg.Connection, victim: bytes, column: str, value: str) -> None:
    assert await connection.execute(f"UPDATE taskflow.jobs SET {column} = {value} WHERE id = $1", victim) == "UPDATE 1"


async def assert_refused(connection: asyncpg.Connection, victim: bytes, column: str, value: str) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await spoil(connection, victim, column, value)


async def test_the_server_refuses_values_that_no_verb_could_work_with(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Of a job that is ready, that runs, and that has ended."""
    envelope = an_envelope()
    await broker.enqueue([envelope])
    for column, values in REFUSED.items():
        for value in values:
            await assert_refused(stranger, envelope.id, column, value)
    [lease] = await broker.claim(SESSION, 1, [], 10)
    for column in ("session", "claim"):
        for value in ("NULL", "'\\x00'"):
            await assert_refused(stranger, envelope.id, column, value)
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    for change in ("ended_at = NULL", "fade_at = NULL", "fade_at = -1", "status = 0", "status = 5"):
        await assert_refused(stranger, envelope.id, *change.split(" = "))


@pytest.mark.parametrize(("field", "value"), [("keep_for", float("nan")), ("keep_for", 1e300), ("ran_for", 1e300), ("ran_for", -9.223e12)])
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


# --- text that is no UTF-8 -----------------------------------------------------------------------------------------


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
