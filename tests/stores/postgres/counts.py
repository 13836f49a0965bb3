"""Counts what a broker's calls read, by the server's statistics: scans of tables and of indexes, and the rows that they return."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg
import pytest

from taskflow.broker.engine.seam import Claimed
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.errors import broker_error
from taskflow.broker.postgres.wakeups import UNHEARD
from taskflow.broker.url import connect
from taskflow.model.session import Session
from tests.support.postgres import PostgresServer, of_this_version

SESSION: Final = os.urandom(16)

UNTIL_KEPT: Final = 6
"""The number of executions until the server may keep one plan for all parameters."""

Cost = dict[str, tuple[int, int]]
"""For each table alone, and each index, the number of scans and of rows that they returned."""


class Clock:
    """The machine's wall clock, plus this many seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds

    def wall(self) -> int:
        return round((time.time() + self.ahead) * 1_000_000)

    steady = wall

    def boot_id(self) -> str:
        return ""


class OnConnection(PostgresBroker):
    """A broker that makes all calls on one connection, in the transaction that is open there. It keeps `wakeups`, and notifies no one."""

    connection: asyncpg.Connection
    wakeups: list[str]

    @classmethod
    def of(cls, connection: asyncpg.Connection, clock: Clock | None = None) -> OnConnection:
        broker = cls(clock=clock, capacity=1_000_000_000)
        broker.connection, broker.wakeups = connection, []
        return broker

    async def _fetch(self, statement: str, *arguments: Any, within: float = 0.0) -> list[Any]:
        try:
            return list(await self.connection.fetch(statement, *arguments))
        except asyncpg.PostgresError as error:
            raise broker_error(error, str(self.server)) from error

    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        claimed, _ = await self.store.claim(session, request, queues, limit, UNHEARD)
        return claimed

    def _tell_readied(self, wakeups: str, seconds: float) -> None:
        self.wakeups.append(wakeups)

    def _tell_ended(self, ids: Set[bytes], are_awaited: bool) -> None: ...

    def _tell_woken(self, woken: Set[str]) -> None: ...

    def _check_marks(self) -> None: ...


Call = Callable[[OnConnection], Awaitable[Any]]


class Store:
    """A schema with one session, and one connection to it, which keeps its plans. `counted`: a pattern of the tables and indexes to
    count."""

    def __init__(self, server: PostgresServer, database: str, connection: asyncpg.Connection) -> None:
        self.url = server.url(database)
        self.counted = "^jobs(_|$)"
        self.connection = connection
        self._server = server
        self._database = database
        self._broker = OnConnection.of(connection)

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        return self._server.rows(query, *arguments, database=self._database)

    def execute(self, script: str) -> None:
        self._server.execute(script, self._database)

    async def costs(self, call: Call | str, *, times: int = 1) -> list[Cost]:
        """Return what each execution of a call or a statement reads. It is rolled back."""
        return [await self._cost(call) for _ in range(times)]

    async def _cost(self, call: Call | str) -> Cost:
        transaction = self.connection.transaction()
        await transaction.start()
        before = await self._counts()
        await (self.connection.fetch(call) if isinstance(call, str) else call(self._broker))
        after = await self._counts()
        await transaction.rollback()
        return {name: (scans - before[name][0], rows - before[name][1]) for name, (scans, rows) in after.items() if scans > before[name][0]}

    async def _counts(self) -> Cost:
        rows = await self.connection.fetch(
            "SELECT relname, pg_stat_get_xact_numscans(oid), pg_stat_get_xact_tuples_returned(oid) FROM pg_class "
            "WHERE relnamespace = 'taskflow'::regnamespace AND relname ~ $1",
            self.counted,
        )
        return {name: (scans, returned) for name, scans, returned in rows}


def rows_of(cost: Cost) -> int:
    return sum(rows for _, rows in cost.values())


@asynccontextmanager
async def a_store(server: PostgresServer) -> AsyncIterator[Store]:
    """Yield a store in a new database of that server, dropped at the end: each takes 8 MB of memory."""
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
    """Count the calls of our functions inside, in all threads: of several in a statement the first."""
    asked = Counter[str]()
    fetch = ConnectionPool.fetch

    async def counted(self: ConnectionPool, statement: str, *arguments: Any, **more: Any) -> list[asyncpg.Record]:
        called = re.search(r'"\.(\w+)\(', statement)
        asked[called[1] if called else statement] += 1
        return await fetch(self, statement, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConnectionPool, "fetch", counted)
        yield asked
