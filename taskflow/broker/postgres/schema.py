"""The schema: made when it is not there, and looked at when it is."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from taskflow.broker.postgres.link import Link, drop
from taskflow.broker.postgres.refusals import ERRORS, in_our_words
from taskflow.broker.postgres.texts import FUNCTIONS, TABLES, script
from taskflow.model.errors import BrokerRefused
from taskflow.model.rules import Rules

VERSION: Final = 1
OLDEST_SERVER: Final = 140_000

MADE_WITHIN: Final = 30.0

# Whoever makes a schema holds this lock meanwhile: a number that nobody else uses.
_LOCK: Final = 0x7461_736B_666C_6F77


async def prepare(link: Link, schema: str, rules: Rules) -> None:
    """Leaves a schema that this version can work with. BrokerRefused when a newer one made it, or the server is too old."""
    place = str(link.server)
    try:
        connection = await link.open()
        try:
            async with asyncio.timeout(MADE_WITHIN):
                await _check_server(connection, place)
                if await _version(connection, schema) is None:
                    await _make(connection, schema, rules)
                _check_version(await _version(connection, schema), schema, place)
        finally:
            drop(connection)
    except ERRORS as error:
        raise in_our_words(error, place) from error


async def _check_server(connection: asyncpg.Connection, place: str) -> None:
    version = int(await connection.fetchval("SELECT current_setting('server_version_num')"))
    if version < OLDEST_SERVER:
        raise BrokerRefused(f"PostgreSQL {version // 10_000} at {place} is too old: taskflow needs 14 or newer")
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        raise BrokerRefused(f"PostgreSQL at {place} is a read-only standby: name the primary in the broker URL")


async def _version(connection: asyncpg.Connection, schema: str) -> int | None:
    if not await _exists(connection, schema):
        return None
    version = await connection.fetchval(f"SELECT value FROM \"{schema}\".meta WHERE name = 'version'")
    return None if version is None else int(version)


async def _exists(connection: asyncpg.Connection, schema: str) -> bool:
    """By a look at the catalog itself: to_regclass() goes by a cache, which does not hear of what others did while it waited for a lock."""
    found = await connection.fetchval(
        "SELECT true FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = $1 AND relname = 'meta'", schema
    )
    return found is not None


def _check_version(version: int | None, schema: str, place: str) -> None:
    if version is None or version > VERSION:
        raise BrokerRefused(
            f"the schema {schema!r} of PostgreSQL at {place} is of version {version}, this taskflow knows {VERSION}: update it"
        )


async def _make(connection: asyncpg.Connection, schema: str, rules: Rules) -> None:
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        if await _exists(connection, schema):
            return
        await connection.execute("SET LOCAL check_function_bodies = off")  # they call each other
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        for name in (TABLES, *FUNCTIONS):
            await connection.execute(script(name, schema, rules))
        await connection.execute(f"INSERT INTO \"{schema}\".meta (name, value) VALUES ('version', {VERSION})")
