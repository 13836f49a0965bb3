"""Prepares the schema: creates or migrates its tables and functions, and checks that it's safe to use."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from taskflow.broker.migrations import ADDITIONS, Migration, Upgrade
from taskflow.broker.postgres import sql_files
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.connect.server import ANSWER_TIMEOUT, drop
from taskflow.broker.postgres.errors import ERRORS
from taskflow.model.errors import BrokerRefused, BrokerUnavailable

VERSION: Final = 1
"""The schema version that the installed taskflow needs. It is part of a release: see tests/stores/postgres/digest.py. A migration adds the
tables and indexes that an older schema lacks, and replaces all functions. Other changes need a separate migration: changes of columns or
types, of a function's arguments or rows, and new indexes with entries on an older kind of record."""

OLDEST_SERVER: Final = 140_000

SCHEMA_TIMEOUT: Final = 30.0
"""Seconds that preparing the schema may take. `taskflow migrate` has no time limit."""

# The key of the advisory lock for creating a schema: "taskflow" in ASCII, which no other program should use.
_LOCK: Final = (0x7461_736B, 0x666C_6F77)


async def prepare(pool: ConnectionPool, schema: str, *, migrates: bool) -> None:
    """Create, migrate or check the schema, so that this version can work with it.

    Raises BrokerRefused if the schema is newer than this version, or if it's older or missing and `migrates` is False.
    This error is also raised if the server is too old, or if a role that is not trusted could change the schema.
    """
    async with _opened(pool, within=SCHEMA_TIMEOUT) as connection:
        found = await _look(connection, pool, schema)
        found.refuse_unless(migrates, f"the schema {schema!r} of PostgreSQL at {pool.server}")
        if found.migrations:
            await _make(connection, pool, schema)
        else:
            pool.put_back(connection)  # the first operation reuses it: a new connection would add 3 ms to a worker's start


async def pending(pool: ConnectionPool, schema: str) -> Upgrade:
    async with _opened(pool, within=SCHEMA_TIMEOUT) as connection:
        return await _look(connection, pool, schema)


async def migrate(pool: ConnectionPool, schema: str) -> Upgrade:
    async with _opened(pool, within=None) as connection:
        return await _make(connection, pool, schema)


def script(found: Upgrade, schema: str) -> str:
    """Return a psql script that does the same as `migrate`. If the schema's version has changed by then, it fails and changes nothing."""
    if not found.migrations:
        return f"-- {found.place} is up to date (version {found.version})\n"
    ahead = (_GUARD_VERSION.replace("%version", str(found.version)),) if found.version else (_GUARD, _MAKE_SCHEMA)
    parts = (
        f"-- taskflow, {found.place}: from version {found.version} to {found.target}. To be run by the owner of the schema.",
        "\\set ON_ERROR_STOP on\n\\set ON_ERROR_ROLLBACK off",
        "BEGIN ISOLATION LEVEL READ COMMITTED;",
        *(part.replace("%schema", schema) for part in (_TAKE_LOCK, *ahead)),
        _additions(schema) if found.version else _contents(schema),
        "COMMIT;\n",
    )
    return "\n\n".join(parts)


# --- the version ------------------------------------------------------------------------------------------------------


async def _look(connection: asyncpg.Connection, pool: ConnectionPool, schema: str) -> Upgrade:
    """Check who owns the schema, and return the pending migrations. Time limits set for the role or
    database are suspended meanwhile, because a connection's first statements take longest."""
    await connection.execute(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0; "
        "SET LOCAL search_path = pg_catalog, pg_temp"
    )
    await check_owner(connection, schema, str(pool.server), pool.server.owner)
    found = await _pending(connection, schema, str(pool.server))
    await connection.execute("COMMIT")
    return found


async def _pending(connection: asyncpg.Connection, schema: str, place: str) -> Upgrade:
    """Return the pending migrations. Raises BrokerRefused if the schema is newer than the installed taskflow, or isn't taskflow's."""
    version = await _version(connection, schema)
    if version is None:
        raise BrokerRefused(
            f"the schema {schema!r} of PostgreSQL at {place} has a table 'meta' without a version: it belongs to another program"
        )
    if version > VERSION:
        raise BrokerRefused(
            f"the schema {schema!r} of PostgreSQL at {place} has version {version}, but taskflow supports only {VERSION}: upgrade taskflow"
        )
    description = f"{ADDITIONS} New functions." if version else "The tables."
    migrations = () if version == VERSION else (Migration(VERSION, description),)
    return Upgrade(place=f"schema {schema!r}", version=version, migrations=migrations)


async def _version(connection: asyncpg.Connection, schema: str) -> int | None:
    """Return the schema's version, 0 if there are no tables yet, or None if the tables are not taskflow's.

    This queries the catalog, because to_regclass() uses a cache that misses changes made while the session waited for a lock.
    """
    found = await connection.fetchval(
        "SELECT true FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = $1 AND relname = 'meta'", schema
    )
    if found is None:
        return 0
    if await connection.fetchval("SELECT has_table_privilege(format('%I.meta', $1::text), 'SELECT')", schema):
        version = await connection.fetchval(sql_files.placed("SELECT value FROM @.meta WHERE name = 'version'", schema))
    else:  # the role may only send jobs
        version = json.loads(await connection.fetchval(sql_files.placed("SELECT @.describe_store()", schema)))["version"]
    return None if version is None else int(version)


# --- creating it ------------------------------------------------------------------------------------------------------


async def _make(connection: asyncpg.Connection, pool: ConnectionPool, schema: str) -> Upgrade:
    """Create or migrate the schema's contents, unless another process has already done so. Return what was done."""
    place = str(pool.server)
    async with connection.transaction(isolation="read_committed"):  # sees changes committed while it waited for the lock
        await connection.execute(_TAKE_LOCK.replace("%schema", schema))
        found = await _pending(connection, schema, place)
        if found.migrations:
            await connection.execute(_MAKE_SCHEMA.replace("%schema", schema))
            await check_owner(connection, schema, place, pool.server.owner)  # again: another process may have created the schema
            await connection.execute(_AS_ITS_OWNER.replace("%schema", schema))
            await connection.execute(_additions(schema) if found.version else _contents(schema))
        return found


def _contents(schema: str) -> str:
    return "\n\n".join(
        [
            "SET LOCAL check_function_bodies = off; -- they call each other",
            *(sql_files.filled(text, schema) for text in (sql_files.tables(), *sql_files.functions())),
            sql_files.placed(f"INSERT INTO @.meta (name, value) VALUES ('version', {VERSION});", schema),
        ]
    )


def _additions(schema: str) -> str:
    """Return the statements that create what an older schema lacks, and replace all functions."""
    tables = [_MADE.sub(r"\1IF NOT EXISTS ", made[0]) for made in _STATEMENT.finditer(sql_files.filled(sql_files.tables(), schema))]
    functions = [_TRIGGER.sub("", sql_files.filled(text, schema)) for text in sql_files.functions()]
    return "\n\n".join(
        [
            "SET LOCAL check_function_bodies = off;\nSET LOCAL client_min_messages = warning;",
            "SET LOCAL lock_timeout = '2s'; -- others would queue behind it",
            *tables,
            *(re.sub("^CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", text, flags=re.MULTILINE) for text in functions),
            sql_files.placed(f"UPDATE @.meta SET value = {VERSION} WHERE name = 'version';", schema),
        ]
    )


_STATEMENT: Final = re.compile(r"^CREATE (?:UNLOGGED )?(?:TABLE|INDEX)\b.*?;$", re.MULTILINE | re.DOTALL)
_TRIGGER: Final = re.compile(r"^CREATE CONSTRAINT TRIGGER .*?;$", re.MULTILINE | re.DOTALL)
_MADE: Final = re.compile(r"^(CREATE (?:UNLOGGED )?(?:TABLE|INDEX) )")

# Overrides limits set for the role or database, because the lock may be granted late. A holder of the lock is ignored if its role has no
# right to create the schema or objects in it.
_TAKE_LOCK: Final = f"""\
SET LOCAL lock_timeout = 0;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL search_path = pg_catalog, pg_temp; -- so that no other function takes the place of a built-in one
DO $$
BEGIN
    WHILE NOT pg_try_advisory_xact_lock({_LOCK[0] << 32 | _LOCK[1]}) LOOP
        PERFORM pg_stat_clear_snapshot();
        EXIT WHEN NOT EXISTS (
            SELECT FROM pg_locks JOIN pg_stat_activity AS activity USING (pid) LEFT JOIN pg_namespace ON nspname = '%schema'
            WHERE locktype = 'advisory' AND granted AND classid = {_LOCK[0]} AND objid = {_LOCK[1]} AND datid = database
                AND (has_database_privilege(usesysid, datid, 'CREATE') OR has_schema_privilege(usesysid, pg_namespace.oid, 'CREATE'))
        );
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;"""

_GUARD: Final = """\
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_tables WHERE schemaname = '%schema' AND tablename = 'meta') THEN
        RAISE EXCEPTION 'the schema %schema already exists: let `taskflow migrate --sql` print a new script';
    END IF;
END
$$;"""

_GUARD_VERSION: Final = """\
DO $$
BEGIN
    IF (SELECT value FROM "%schema".meta WHERE name = 'version') <> %version THEN
        RAISE EXCEPTION 'the schema %schema has another version by now: let `taskflow migrate --sql` print a new script';
    END IF;
END
$$;"""

# CREATE SCHEMA IF NOT EXISTS needs the right to create schemas, even if this one exists.
_MAKE_SCHEMA: Final = """\
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '%schema') THEN
        CREATE SCHEMA "%schema";
    END IF;
END
$$;"""

_AS_ITS_OWNER: Final = """\
DO $$
DECLARE
    owner oid := (SELECT nspowner FROM pg_namespace WHERE nspname = '%schema');
BEGIN
    IF pg_has_role(owner, 'MEMBER') AND owner NOT IN (current_user::regrole, 'pg_database_owner'::regrole) THEN
        EXECUTE format('SET LOCAL ROLE %I', pg_get_userbyid(owner));
    END IF;
END
$$;"""
"""Switches to the role that owns the schema, so that this role owns every object, no matter which of its members creates them."""


# --- connecting -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _opened(pool: ConnectionPool, *, within: float | None) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection, check that the server is suitable, and limit the `async with` block to `within`
    seconds, if not None. Driver errors, including those in the block, are raised as BrokerError."""
    place = str(pool.server)
    try:
        connection = await pool.open()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
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
    [(version, is_standby, encoding)] = await connection.fetch(
        "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery(), pg_catalog.getdatabaseencoding()"
    )
    if version < OLDEST_SERVER:
        raise BrokerRefused(f"PostgreSQL {version // 10_000} at {place} is too old: taskflow needs 14 or newer")
    if is_standby:
        raise BrokerRefused(f"PostgreSQL at {place} is a read-only standby: name the primary in the broker URL")
    if encoding == "SQL_ASCII":
        raise BrokerRefused(f"PostgreSQL at {place}: the database's encoding is SQL_ASCII, which does not validate text: use one with UTF8")


# --- who owns it ------------------------------------------------------------------------------------------------------


async def check_owner(connection: asyncpg.Connection, schema: str, place: str, trusted: str | None) -> None:
    """Raise BrokerRefused if a role that is not trusted owns a part of the schema, or may create functions or triggers in it.

    Our functions run with the rights of their caller, so every role that could replace one must be trusted. The trusted roles are the
    connected role, roles that it is a member of, superusers, the owner of the database, and `trusted`. A role that was merely granted
    rights may use a schema that one of these owns. `place` names the server.
    """
    found = await connection.fetchrow(FIRST_UNTRUSTED_ROLE, schema, trusted)
    if found is None:
        return
    role = found["role"]
    if found["is_granted"]:
        remedy = "revoke that right"
    else:
        remedy = f"add owner={role} to the broker URL if you trust that role, or drop the schema"
    raise BrokerRefused(
        f"the schema {schema!r} of PostgreSQL at {place} is not safe to use: {role} {found['how']}, and could run functions as "
        f"{found['as_whom']}; {remedy}"
    )


# Membership is read from the catalog, because for a superuser pg_has_role() returns true for every role.
FIRST_UNTRUSTED_ROLE: Final = """
WITH RECURSIVE mine (oid) AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user
    UNION SELECT roleid FROM pg_catalog.pg_auth_members JOIN mine ON member = mine.oid
), space AS (
    SELECT oid, nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname = $1
), trusted (oid) AS (
    SELECT oid FROM mine
    UNION ALL SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database()
    UNION ALL SELECT oid FROM pg_catalog.pg_roles WHERE rolsuper OR rolname = $2 OR rolname = 'pg_database_owner'
), found (oid, how, is_granted) AS (
    SELECT nspowner, 'owns it', false FROM space
    UNION ALL SELECT grantee, 'may create in it', true
    FROM space, aclexplode(nspacl) WHERE privilege_type = 'CREATE' AND grantee <> nspowner
    UNION ALL SELECT proowner, 'owns its function ' || proname, false FROM pg_catalog.pg_proc, space
    WHERE pronamespace = space.oid AND proowner <> nspowner
    UNION ALL SELECT relowner, 'owns ' || relname || ' in it', false FROM pg_catalog.pg_class, space
    WHERE relnamespace = space.oid AND relowner <> nspowner
    UNION ALL SELECT grantee, 'may put triggers on ' || relname || ' in it', true
    FROM pg_catalog.pg_class, space, aclexplode(relacl)
    WHERE relnamespace = space.oid AND privilege_type = 'TRIGGER' AND grantee <> relowner
)
SELECT CASE found.oid WHEN 0 THEN 'everybody' ELSE pg_catalog.pg_get_userbyid(found.oid) END AS role, how, is_granted,
    current_user AS as_whom
FROM found WHERE found.oid NOT IN (SELECT oid FROM trusted) LIMIT 1
"""
