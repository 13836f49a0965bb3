"""Prepares the schema: creates or migrates it if necessary, and checks that it is safe to use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from taskflow.broker.migrations import Upgrade
from taskflow.broker.postgres import migrations, ownership
from taskflow.broker.postgres.connect.pool import ConnectionPool, drop
from taskflow.broker.postgres.connect.server import ANSWER_WITHIN
from taskflow.broker.postgres.errors import ERRORS
from taskflow.model.errors import BrokerRefused, BrokerUnavailable

OLDEST_SERVER: Final = 140_000

MADE_WITHIN: Final = 30.0
"""Seconds that preparing the schema may take. A migration that takes longer needs `taskflow migrate`, which has no time limit."""


async def prepare(pool: ConnectionPool, schema: str, *, migrates: bool) -> None:
    """Create, migrate or check the schema, so that this version can work with it.

    Raises BrokerRefused if the schema is from a newer version, or a migration is pending and `migrates` is False.
    This error is also raised if the server is too old, or if a role that is not trusted could change the schema.
    """
    async with _opened(pool, within=MADE_WITHIN) as connection:
        found = await _look(connection, pool, schema)
        found.refuse_unless(migrates, f"the schema {schema!r} of PostgreSQL at {pool.server}")
        if found.migrations:
            await _upgrade(connection, pool, schema)
        else:
            pool.put_back(connection)  # the first verb reuses it: a new one would add 3 ms to a worker's start, and load everything again


async def pending(pool: ConnectionPool, schema: str) -> Upgrade:
    async with _opened(pool, within=MADE_WITHIN) as connection:
        return await _look(connection, pool, schema)


async def migrate(pool: ConnectionPool, schema: str) -> Upgrade:
    async with _opened(pool, within=None) as connection:
        return await _upgrade(connection, pool, schema)


async def _upgrade(connection: asyncpg.Connection, pool: ConnectionPool, schema: str) -> Upgrade:
    return await migrations.upgrade(connection, schema, str(pool.server), pool.server.owner)


async def _look(connection: asyncpg.Connection, pool: ConnectionPool, schema: str) -> Upgrade:
    """Check who owns the schema, and return its pending migrations. Time limits set for the role
    or database are suspended meanwhile, because a connection's first statements take longest."""
    place = str(pool.server)
    await connection.execute(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0; "
        "SET LOCAL search_path = pg_catalog, pg_temp"
    )
    await ownership.check(connection, schema, place, pool.server.owner)
    found = await migrations.pending(connection, schema, place)
    await connection.execute("COMMIT")
    return found


@asynccontextmanager
async def _opened(pool: ConnectionPool, *, within: float | None) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection to a suitable server, and limit the `async with` block to
    `within` seconds. Driver errors, also inside the block, are raised as BrokerError."""
    place = str(pool.server)
    try:
        connection = await pool.open()
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await _check_server(connection, place)
            try:
                async with asyncio.timeout(within):
                    yield connection
            except TimeoutError as error:
                raise BrokerUnavailable(
                    f"PostgreSQL at {place}: the schema could not be checked or migrated within {within or 0:g} s, perhaps because "
                    "another process is migrating it; `taskflow migrate` has no time limit"
                ) from error
        finally:
            if not pool.has(connection):
                drop(connection)
    except ERRORS as error:
        raise pool.broker_error(error) from error


async def _check_server(connection: asyncpg.Connection, place: str) -> None:
    [(version, is_standby)] = await connection.fetch(
        "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery()"
    )
    if version < OLDEST_SERVER:
        raise BrokerRefused(f"PostgreSQL {version // 10_000} at {place} is too old: taskflow needs 14 or newer")
    if is_standby:
        raise BrokerRefused(f"PostgreSQL at {place} is a read-only standby: name the primary in the broker URL")
