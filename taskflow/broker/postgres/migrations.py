"""Migrates a schema to the version that the installed taskflow needs: first the tables, step by step, then all functions.

A migration is one transaction. It waits for verbs that have already begun; verbs that begin later wait for it. If another transaction holds
locks on the tables, each attempt waits at most LOCKED_WITHIN.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

import asyncpg

from taskflow.broker.engine.records import INDEXES
from taskflow.broker.migrations import Migrations, Upgrade
from taskflow.broker.postgres import ownership, sql_files, tables
from taskflow.model.errors import BrokerRefused, BrokerUnavailable

LOCKED_WITHIN: Final = 2.0
"""Seconds that a migration waits for locks on the tables, while verbs queue behind it. This is less than a verb's limit, ANSWER_WITHIN."""

MOST_TRIES: Final = 3
PAUSE: Final = 1.0
"""Seconds between attempts, during which verbs that queued behind the migration can run."""

# The key of the advisory lock for migrations: "taskflow" in ASCII, which no other program should use. One that holds it all the same is
# passed over, unless its role may migrate.
_MIGRATION_LOCK: Final = (0x7461_736B, 0x666C_6F77)

TABLES: Final = (
    *("meta", "requests", "marks", *tables.TABLES.values(), *(index.name for index in INDEXES if index.entries)),
    *("tally", "totals", "awaited", "idle"),
)
"""The tables, in the order in which most verbs use them."""

_HELD_UP: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.QueryCanceledError)

# Errors of a verb that a migration has overtaken: an old function met new tables, or the function no longer exists.
_OVERTAKEN: Final = frozenset({"0A000", "42703", "42804", "42883", "42P01", "42P13", "XX000"})


MIGRATIONS: Final = Migrations(sql_files.FOLDER / "schema")

VERSION: Final = MIGRATIONS.newest
"""The schema version that the installed taskflow needs."""


def was_overtaken(error: BaseException) -> bool:
    """Return True if a verb may have failed because a migration took place while it ran. The verb had no effect, and can be sent again."""
    return isinstance(error.__cause__, asyncpg.PostgresError) and error.__cause__.sqlstate in _OVERTAKEN


def was_dropped(error: BaseException) -> bool:
    """Return True if a verb failed because the schema has been dropped, or has not been created yet."""
    return isinstance(error.__cause__, asyncpg.InvalidSchemaNameError | asyncpg.UndefinedTableError)


async def pending(connection: asyncpg.Connection, schema: str, place: str) -> Upgrade:
    """Return the pending migrations. Raises BrokerRefused if the schema is newer than
    the installed taskflow, or belongs to another program. `place` names the server."""
    version = await _version(connection, schema)
    if version is None:
        raise BrokerRefused(
            f"the schema {schema!r} of PostgreSQL at {place} has a table meta without a version: it belongs to another program"
        )
    if version > VERSION:
        raise BrokerRefused(
            f"the schema {schema!r} of PostgreSQL at {place} has version {version}, but this taskflow knows {VERSION}: upgrade taskflow"
        )
    return MIGRATIONS.after(version, f"schema {schema!r}")


async def upgrade(connection: asyncpg.Connection, schema: str, place: str, trusted: str | None) -> Upgrade:
    """Migrate the schema to VERSION, unless another process has already done so. For `trusted`, see `ownership`."""
    async with connection.transaction(isolation="read_committed"):  # sees changes committed while it waited for the lock
        await connection.execute(_TAKE_MIGRATION_LOCK.replace("%schema", schema))
        found = await pending(connection, schema, place)
        if not found.migrations:
            return found
        if found.version:
            await _check_owner(connection, schema, place, found)
            await _lock(connection, schema, place, found)
        if not found.version:
            await connection.execute(_create_schema(schema))
        await ownership.check(connection, schema, place, trusted)  # again: another process may have created the schema
        await connection.execute(_AS_ITS_OWNER.replace("%schema", schema))
        await connection.execute(_changes(found, schema))
        return found


def script(found: Upgrade, schema: str) -> str:
    """Return the migration as a psql script. It fails, changing nothing, if the schema no longer has the version in `found`."""
    if not found.migrations:
        return f"-- {found.place} is up to date (version {found.version})\n"
    begun = f"{_LIMITS}\n{_locking(schema)}\n{_NO_LIMITS}" if found.version else _create_schema(schema)
    parts = (
        f"-- taskflow, {found.place}: from version {found.version} to {found.target}. To be run by the owner of its tables.",
        "\\set ON_ERROR_STOP on\n\\set ON_ERROR_ROLLBACK off",
        "BEGIN ISOLATION LEVEL READ COMMITTED;",
        _TAKE_MIGRATION_LOCK.replace("%schema", schema),
        _guard(found, schema),
        begun,
        _changes(found, schema),
        "COMMIT;\n",
    )
    return "\n\n".join(part for part in parts if part)


# --- the version -----------------------------------------------------------------------------------------------------


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
    else:  # the role may only send
        version = json.loads(await connection.fetchval(sql_files.placed("SELECT @.describe_store()", schema)))["version"]
    return None if version is None else int(version)


# --- locks -----------------------------------------------------------------------------------------------------------


async def _check_owner(connection: asyncpg.Connection, schema: str, place: str, found: Upgrade) -> None:
    """Raise BrokerRefused if this role may not change the tables. Without this
    check, it could still lock them, and make other sessions wait for nothing."""
    owner = await connection.fetchval(
        "SELECT pg_get_userbyid(relowner) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = $1 AND relname = ANY ($2) AND NOT pg_has_role(relowner, 'USAGE') LIMIT 1",
        schema,
        list(TABLES),
    )
    if owner is not None:
        raise BrokerRefused(
            f"the schema {schema!r} of PostgreSQL at {place} has version {found.version}, but this taskflow needs {VERSION}, "
            f"and this user may not change its tables: run `taskflow migrate` as their owner, {owner}"
        )


async def _lock(connection: asyncpg.Connection, schema: str, place: str, found: Upgrade) -> None:
    """Lock all tables together, so that no verb begins with the old functions and tables and ends with the new ones."""
    for tries in range(1, MOST_TRIES + 1):
        await connection.execute("SAVEPOINT locking")  # the advisory lock survives a rollback to this
        try:
            await connection.execute(f"{_LIMITS}\n{_locking(schema)}\n{_NO_LIMITS}\nRELEASE SAVEPOINT locking")
            return
        except _HELD_UP as error:
            # Released here; otherwise everything that follows would belong to the savepoint, with a different xmin: see _MARK_FUNCTIONS.
            await connection.execute("ROLLBACK TO SAVEPOINT locking; RELEASE SAVEPOINT locking")
            error.detail = None  # as in broker_error()
            holder = await _holder(connection, schema)
            if tries == MOST_TRIES:
                raise BrokerUnavailable(
                    f"the schema {schema!r} of PostgreSQL at {place} could not be migrated from version {found.version} to {VERSION}: "
                    f"{holder} holds locks on its tables; end it or wait for it, then try again"
                ) from error
        await asyncio.sleep(PAUSE)


async def _holder(connection: asyncpg.Connection, schema: str) -> str:
    """Return a description of the oldest transaction that holds locks on our tables."""
    row = await connection.fetchrow(
        "SELECT activity.pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::bigint AS lasts FROM pg_locks "
        "JOIN pg_class ON pg_class.oid = relation JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "JOIN pg_stat_activity AS activity USING (pid) "
        "WHERE nspname = $1 AND relname = ANY ($2) AND granted AND pid <> pg_backend_pid() AND activity.datname = current_database() "
        "ORDER BY xact_start LIMIT 1",
        schema,
        list(TABLES),
    )
    if row is None:
        return "a transaction"
    name = f" ({row['application_name']})" if row["application_name"] else ""
    lasts = "" if row["lasts"] is None else f" has a transaction of {row['lasts']} s, which"
    return f"process {row['pid']} of the server{name}{lasts}"


# --- the statements --------------------------------------------------------------------------------------------------

# Overrides limits set for the role or database: the lock may be granted late, and changing a large table takes a long time.
_TAKE_MIGRATION_LOCK: Final = f"""\
SET LOCAL lock_timeout = 0;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL search_path = pg_catalog, pg_temp; -- so that no other function takes the place of a built-in one
DO $$
BEGIN
    WHILE NOT pg_try_advisory_xact_lock({_MIGRATION_LOCK[0] << 32 | _MIGRATION_LOCK[1]}) LOOP
        PERFORM pg_stat_clear_snapshot();
        EXIT WHEN NOT EXISTS ( -- a role that may migrate
            SELECT FROM pg_locks JOIN pg_stat_activity AS activity USING (pid) LEFT JOIN pg_namespace ON nspname = '%schema'
            WHERE locktype = 'advisory' AND granted AND classid = {_MIGRATION_LOCK[0]} AND objid = {_MIGRATION_LOCK[1]} AND datid = database
                AND (has_database_privilege(usesysid, datid, 'CREATE') OR has_schema_privilege(usesysid, pg_namespace.oid, 'CREATE'))
        );
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;"""

# The statement as a whole has a limit too, because lock_timeout applies to each table separately.
_LIMITS: Final = f"""\
SET LOCAL lock_timeout = {round(LOCKED_WITHIN * 1000)};
SET LOCAL statement_timeout = {round(LOCKED_WITHIN * 1000)};"""

_NO_LIMITS: Final = "SET LOCAL statement_timeout = 0;"


def _guard(found: Upgrade, schema: str) -> str:
    text = _GUARD_OF_SOME if found.version else _GUARD_OF_NONE
    return sql_files.placed(text, schema).replace("%version", str(found.version)).replace("%schema", schema)


_GUARD_OF_SOME: Final = """\
DO $$
BEGIN
    IF (SELECT value FROM @.meta WHERE name = 'version') IS DISTINCT FROM %version THEN
        RAISE EXCEPTION 'the schema %schema is not of version %version any more: let `taskflow migrate --sql` print this script again';
    END IF;
END
$$;"""

_GUARD_OF_NONE: Final = """\
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_tables WHERE schemaname = '%schema' AND tablename = 'meta') THEN
        RAISE EXCEPTION 'the schema %schema is there already: let `taskflow migrate --sql` print this script again';
    END IF;
END
$$;"""


def _locking(schema: str) -> str:
    return _LOCK_TABLES.replace("%schema", schema).replace("%tables", ",".join(TABLES))


_LOCK_TABLES: Final = """\
DO $$
DECLARE
    tables text;
BEGIN
    SELECT string_agg(format('%I.%I', schemaname, tablename), ', ' ORDER BY array_position('{%tables}', tablename::text)) INTO tables
    FROM pg_tables WHERE schemaname = '%schema' AND tablename = ANY ('{%tables}');
    EXECUTE 'LOCK TABLE ' || tables || ' IN ACCESS EXCLUSIVE MODE';
END
$$;"""


def _changes(found: Upgrade, schema: str) -> str:
    """Return the SQL that makes the changes. It drops the functions first, because an old one could prevent a change to a table or type."""
    dropped = _of_ours(_DROP_FUNCTIONS, schema) if found.version else ""
    tables = (sql_files.filled(MIGRATIONS.text(migration.version), schema) for migration in found.migrations)
    functions = (sql_files.filled(text, schema) for text in sql_files.functions())
    ended = sql_files.placed(_SET_VERSION, schema).replace("%version", str(found.target))
    return "\n\n".join([_UNCHECKED, dropped, *tables, *functions, _of_ours(_MARK_FUNCTIONS, schema), ended])


_UNCHECKED: Final = "SET LOCAL check_function_bodies = off; -- they call each other"

# CREATE SCHEMA needs the right to create schemas, even with IF NOT EXISTS.
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
"""Switches to the role that owns the schema, so that this role owns every object, no matter which of its members migrates."""


def _create_schema(schema: str) -> str:
    return _MAKE_SCHEMA.replace("%schema", schema)


def _of_ours(text: str, schema: str) -> str:
    return text.replace("%schema", schema).replace("%mark", _MARK)


_MARK: Final = "taskflow made it, and drops it when the schema is migrated"
"""The comment on each of our functions. A function without it is not ours, whatever its name."""

# Selects functions by xmin: this transaction creates no functions but taskflow's.
_MARK_FUNCTIONS: Final = """\
DO $$
DECLARE
    marks text;
BEGIN
    SELECT string_agg(format('COMMENT ON FUNCTION %s IS %L', pg_proc.oid::regprocedure, '%mark'), '; ') INTO marks FROM pg_proc
    WHERE pronamespace = to_regnamespace('"%schema"') AND pg_proc.xmin = pg_current_xact_id()::xid
        AND NOT (proname = 'enqueue' AND proargnames[1] = 'job' OR proname IN ('enqueue_within', 'settle_within'));
    EXECUTE marks;
END
$$;"""

# Drops all of taskflow's functions, and the triggers that call them, because their parameters or results may change. It keeps enqueue()
# from sql_api.sql, and the functions in transactional.sql, because users' grants and triggers depend on them.
_DROP_FUNCTIONS: Final = """\
DO $$
DECLARE
    drops text;
BEGIN
    SELECT string_agg(format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass), '; ') INTO drops
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE NOT tgisinternal AND relnamespace = pronamespace AND pronamespace = to_regnamespace('"%schema"')
        AND obj_description(pg_proc.oid, 'pg_proc') = '%mark';
    IF drops IS NOT NULL THEN
        EXECUTE drops;
    END IF;
    SELECT 'DROP ROUTINE ' || string_agg(pg_proc.oid::regprocedure::text, ', ') INTO drops FROM pg_proc
    WHERE pronamespace = to_regnamespace('"%schema"') AND obj_description(pg_proc.oid, 'pg_proc') = '%mark';
    IF drops IS NOT NULL THEN
        EXECUTE drops;
    END IF;
END
$$;"""

_SET_VERSION: Final = """\
INSERT INTO @.meta (name, value) VALUES ('version', %version) ON CONFLICT (name) DO UPDATE SET value = excluded.value;"""
