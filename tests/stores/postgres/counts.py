"""Counts what statements read, by the server's statistics: full scans of a table, scans of each index, and the rows that these return."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg
import pytest

from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from tests.stores.postgres.versions import of_this_version
from tests.support.postgres import PostgresServer

new_id = IdFactory()

SESSION: Final = os.urandom(16)

_FILL: Final = """
    INSERT INTO taskflow.jobs (id, created_at, due_at, status, priority, queue, job, payload)
    SELECT decode(md5(n::text), 'hex'), 0, of_like.due_at + n, of_like.status, of_like.priority, of_like.queue, of_like.job, of_like.payload
    FROM generate_series(2, $2::integer) AS n, (SELECT * FROM taskflow.jobs WHERE id = $1) AS of_like
"""
"""More like the one that the broker has added."""


class Store:
    """A schema with one session, and one connection to it, whose plans stay. `counted`: a pattern of the tables and indexes looked at."""

    def __init__(self, server: PostgresServer, database: str, connection: asyncpg.Connection) -> None:
        self.url = server.url(database)
        self.counted = "^jobs(_|$)"
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

    def dead_rows(self) -> int:
        """Of jobs, as the server's statistics have it, which come a moment late."""
        [(rows,)] = self._server.rows("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobs'", database=self._database)
        return int(rows)

    def database_stats(self) -> tuple[int, int, int]:
        """Of jobs the rows that were inserted and updated; of the database the transactions."""
        [row] = self._server.rows(
            "SELECT n_tup_ins, n_tup_upd, (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) "
            "FROM pg_stat_user_tables WHERE relname = 'jobs'",
            database=self._database,
        )
        return row[0], row[1], row[2]

    async def in_one_transaction(self, *statements: str) -> list[Any]:
        """The first value that each gives."""
        async with self._connection.transaction():
            return [await self._connection.fetchval(statement) for statement in statements]

    async def costs(self, statement: str, *arguments: Any, times: int = 1) -> list[dict[str, tuple[int, int]]]:
        """Each time, of each index and of each table by itself, how often it is scanned and how many rows that gives."""
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
            "WHERE relnamespace = 'taskflow'::regnamespace AND relname ~ $1",
            self.counted,
        )
        return {name: (scans, returned) for name, scans, returned in rows}


@asynccontextmanager
async def a_store(server: PostgresServer) -> AsyncIterator[Store]:
    """In a new database of that server, dropped at the end: each takes 8 MB of memory."""
    database = of_this_version(server)
    broker = connect(server.url(database))
    await broker.register(Session(id=SESSION, name="worker"))
    await broker.close()
    connection = await asyncpg.connect(server.url(database))
    yield Store(server, database, connection)
    await connection.close()
    server.drop_database(database)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """The functions of ours that are called inside, in all threads."""
    asked = Counter[str]()
    fetch = ConnectionPool.fetch

    async def counted(self: ConnectionPool, statement: str, *arguments: Any, **more: Any) -> list[asyncpg.Record]:
        asked[statement.rpartition('".')[2].partition("(")[0]] += 1
        return await fetch(self, statement, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConnectionPool, "fetch", counted)
        yield asked
