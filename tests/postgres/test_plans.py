"""What a statement costs does not grow with what waits: it is found by an index, also by a plan that was made when the table was empty.

Counted by the server, in the transaction of the statement: scans of the table from end to end, scans of each index, and the rows that
these have given. So it holds for the plans that were really used, those within functions too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from taskflow import Status
from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.clock import microseconds_of
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settled
from tests.postgres.scene import until
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.verdicts import failed, retried, succeeded

LIMIT: Final = 10

UNTIL_KEPT: Final = 6
"""Executions until the server may keep a plan for whatever parameters."""

new_id = IdFactory()

SESSION: Final = os.urandom(16)

CLAIM: Final = "SELECT * FROM taskflow.claim(NULL, NULL, $1, $2, $3, $4)"
UPKEEP: Final = "SELECT * FROM taskflow.upkeep($1, NULL, $2)"

IN_A_DAY: Final = microseconds_of(datetime.now(UTC) + timedelta(days=1))

CALLS: Final[Sequence[Any]] = (
    (CLAIM, SESSION, 1, [], LIMIT),
    (CLAIM, SESSION, 1, ["default"], LIMIT),
    (UPKEEP, None, LIMIT),
    (UPKEEP, IN_A_DAY, LIMIT),
)

_FILL: Final = """
    INSERT INTO taskflow.jobs (id, created_at, due_at, status, priority, queue, job, payload)
    SELECT decode(md5(n::text), 'hex'), 0, of_like.due_at + n, of_like.status, of_like.priority, of_like.queue, of_like.job, of_like.payload
    FROM generate_series(2, $2::integer) AS n, (SELECT * FROM taskflow.jobs WHERE id = $1) AS of_like
"""
"""More like the one that the broker has added."""


class Store:
    """A schema with one session, and one connection to it, whose plans stay."""

    def __init__(self, server: PostgresServer, database: str, connection: asyncpg.Connection) -> None:
        self.url = server.url(database)
        self._server = server
        self._database = database
        self._connection = connection

    async def fill(self, rows: int, *, after: float) -> None:
        if rows == 0:
            return
        envelope = Envelope(id=new_id(), job="work", payload=b"\x01payload", after=after)
        broker = connect(self.url)
        await broker.enqueue([envelope])
        await broker.close()
        other = await asyncpg.connect(self.url)
        await other.execute(_FILL, envelope.id, rows)
        await other.close()

    def others(self) -> list[tuple[Any, ...]]:
        """The connections of brokers."""
        return self._server.rows("SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name = 'taskflow'", self._database)

    def rows_read(self) -> tuple[int, int]:
        """Of jobs, by scans of the table and by all its indexes."""
        [(by_scan, by_index)] = self._server.rows(
            "SELECT seq_tup_read, (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'jobs') "
            "FROM pg_stat_user_tables WHERE relname = 'jobs'",
            database=self._database,
        )
        return by_scan, by_index

    async def costs(self, statement: str, *arguments: Any, times: int = 1) -> list[dict[str, tuple[int, int]]]:
        """Each time, of each index and of the table by itself ("jobs"), how often it is scanned and how many rows that gives."""
        return [await self._cost(statement, *arguments) for _ in range(times)]

    async def _cost(self, statement: str, *arguments: Any) -> dict[str, tuple[int, int]]:
        transaction = self._connection.transaction()
        await transaction.start()
        before = await self._counts()
        await self._connection.fetch(statement, *arguments)
        after = await self._counts()
        await transaction.rollback()
        return {name: (scans - before[name][0], rows - before[name][1]) for name, (scans, rows) in after.items() if scans > before[name][0]}

    async def _counts(self) -> dict[str, tuple[int, int]]:
        rows = await self._connection.fetch(
            "SELECT relname, pg_stat_get_xact_numscans(oid), pg_stat_get_xact_tuples_returned(oid) FROM pg_class "
            "WHERE relnamespace = 'taskflow'::regnamespace AND (relname = 'jobs' OR relname LIKE 'jobs\\_%')"
        )
        return {name: (scans, returned) for name, scans, returned in rows}


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    server = shared_postgres()
    database = server.new_database()
    broker = connect(server.url(database))
    await broker.register(Session(id=SESSION, name="worker"))
    await broker.close()
    connection = await asyncpg.connect(server.url(database))
    yield Store(server, database, connection)
    await connection.close()


def assert_cheap(costs: list[dict[str, tuple[int, int]]], index: str) -> None:
    """By that index each time, never by the table from end to end, and of few rows."""
    for cost in costs:
        assert index in cost, costs
        assert "jobs" not in cost, costs
        assert all(rows <= 3 * LIMIT for _, rows in cost.values()), cost


both_ways = pytest.mark.parametrize("is_filled_first", [True, False], ids=["planned when full", "planned when empty"])
any_number = pytest.mark.parametrize("rows", [0, 1_000, 100_000])
any_kind = pytest.mark.parametrize("after", [0.0, 3600.0], ids=["ready", "scheduled"])


@any_number
@any_kind
@both_ways
async def test_a_claim_goes_by_jobs_ready_and_upkeep_by_jobs_due(store: Store, rows: int, after: float, is_filled_first: bool) -> None:
    """Claims of any queue and of one; upkeep with nothing to do, however much is waiting, and with much that has fallen due."""
    if is_filled_first:
        await store.fill(rows, after=after)
    costs = [await store.costs(*arguments, times=UNTIL_KEPT) for arguments in CALLS]
    if not is_filled_first:
        await store.fill(rows, after=after)
        costs = [await store.costs(*arguments) for arguments in CALLS]
    of_any_queue, of_one_queue, idle_upkeep, upkeep = costs
    assert_cheap([*of_any_queue, *of_one_queue], "jobs_ready")
    assert_cheap([*idle_upkeep, *upkeep], "jobs_due")


@any_kind
async def test_no_verb_reads_100_000_jobs(store: Store, after: float, capsys: pytest.CaptureFixture[str]) -> None:
    """On connections that have done each of them for an empty table, and go on."""
    broker = connect(store.url)
    for request in range(1, UNTIL_KEPT + 2):
        await every_verb(broker, request)
    await store.fill(100_000, after=after)
    await every_verb(broker, UNTIL_KEPT + 2)
    await broker.close()
    await until(lambda: not store.others(), 5)  # the server has counted what a connection did once it has ended
    by_scan, by_index = store.rows_read()
    with capsys.disabled():
        print(f"\n{by_scan} rows of jobs read by scans of the table, {by_index} by indexes")
    assert by_scan < 5_000
    assert by_index < 5_000


async def every_verb(broker: Broker, request: int) -> None:
    envelopes = [Envelope(id=new_id(), job="work", payload=b"\x01payload", priority=1) for _ in range(8)]
    await broker.enqueue(envelopes)
    await broker.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", key=os.urandom(16), after=60.0) for _ in range(2)])
    leases = await broker.claim(SESSION, request, [], 7)
    assert len(leases) == 7
    await broker.beat(Beat(session=SESSION, claims=tuple(lease.claim for lease in leases), seen=request))
    assert await broker.settle([succeeded(lease) for lease in leases[:3]]) == [Settled.OK] * 3
    assert await broker.settle([succeeded(leases[3]), retried(leases[4]), failed(leases[5])]) == [Settled.OK] * 3
    assert await broker.cancel([envelopes[7].id, leases[6].envelope.id]) == [Status.READY, Status.RUNNING]
    await broker.read([envelope.id for envelope in envelopes])
    await broker.upkeep(LIMIT)
    with broker.listen([topics.ANY_QUEUE, topics.DUE, topics.job(envelopes[0].id)]) as nudges:
        await nudges.wait(0.01)
