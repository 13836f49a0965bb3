"""A schema is used only if no one but trusted roles can change its functions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pytest

from taskflow import BrokerRefused
from taskflow.broker.url import connect
from taskflow.model.ids import key_digest
from tests.stores.jobs import an_envelope, registered
from tests.stores.scene import one_job_is_done
from tests.support.postgres import PostgresServer

ROLES: Final = "CREATE ROLE app LOGIN; CREATE ROLE mallory LOGIN; CREATE ROLE team; CREATE ROLE other LOGIN"

GRANTS: Final = """
    GRANT USAGE ON SCHEMA taskflow TO app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA taskflow TO app;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA taskflow TO app
"""
"""The rights that docs/how-to/configure-a-broker.md grants to a role that does not own the schema."""

REVOKE: Final = "REVOKE CREATE ON SCHEMA taskflow FROM PUBLIC, mallory"


@pytest.fixture(scope="module")
def roles() -> Iterator[PostgresServer]:
    with PostgresServer(fsync=False) as server:
        server.execute(ROLES)
        yield server


@pytest.fixture
def database(roles: PostgresServer) -> str:
    name = roles.new_database()
    roles.execute(f"GRANT CREATE ON DATABASE {name} TO app, mallory, other, team")
    return name


async def use(roles: PostgresServer, database: str, user: str, options: str = "") -> None:
    broker = connect(f"{roles.url(database, user)}{options}")
    try:
        await one_job_is_done(broker)
    finally:
        await broker.close()


@pytest.mark.parametrize("user", ["app", "postgres"])
async def test_an_empty_schema_of_another_role_is_refused(roles: PostgresServer, database: str, user: str) -> None:
    """A superuser risks most by running another role's functions, and is a member of every role according to pg_has_role()."""
    roles.execute("SET ROLE mallory; CREATE SCHEMA taskflow; GRANT ALL ON SCHEMA taskflow TO app", database)
    broker: Any = connect(roles.url(database, user))
    for verb in (partial(broker.read, [bytes(16)]), broker.migrate, broker.pending):
        with pytest.raises(BrokerRefused, match=r"mallory owns it.* owner=mallory"):
            await verb()
    await broker.close()
    assert roles.rows("SELECT count(*) FROM pg_proc WHERE pronamespace = 'taskflow'::regnamespace", database=database) == [(0,)]


async def test_a_full_schema_of_another_role_is_refused_until_the_url_names_that_role(roles: PostgresServer, database: str) -> None:
    await use(roles, database, "mallory")
    roles.execute(GRANTS, database)
    with pytest.raises(BrokerRefused, match="mallory owns it"):
        await use(roles, database, "app")
    await use(roles, database, "app", "?owner=mallory")


HARMS: Final = {
    "a function": (
        "CREATE FUNCTION taskflow.wall(text) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';"
        "ALTER FUNCTION taskflow.wall(text) OWNER TO mallory",
        "mallory owns its function wall",
        "DROP FUNCTION taskflow.wall(text)",
    ),
    "all may create": ("GRANT CREATE ON SCHEMA taskflow TO PUBLIC", "everybody may create in it.*revoke that right", REVOKE),
    "one may create": ("GRANT CREATE ON SCHEMA taskflow TO mallory", "mallory may create in it.*revoke that right", REVOKE),
    "triggers": (
        "GRANT ALL ON taskflow.jobs TO mallory",
        "mallory may put triggers on jobs in it.*revoke that right",
        "REVOKE ALL ON taskflow.jobs FROM mallory",
    ),
}
"""Objects of another role in our schema, perhaps from a time when it could create there. A trigger runs with the rights of the role that
changes the table."""


async def test_rights_that_let_others_replace_our_functions_are_refused(roles: PostgresServer, database: str) -> None:
    await use(roles, database, "app")
    for harm, says, mends in HARMS.values():
        roles.execute(harm, database)
        with pytest.raises(BrokerRefused, match=says):
            await use(roles, database, "app")
        roles.execute(mends, database)
        await use(roles, database, "app")


async def test_members_of_the_owner_migrate_and_work_alike(roles: PostgresServer, database: str) -> None:
    """Whichever of them migrates, everything belongs to the schema's owner."""
    roles.execute("GRANT team TO app, other; CREATE SCHEMA taskflow AUTHORIZATION team", database)
    try:
        await use(roles, database, "app")
        await use(roles, database, "other")
    finally:
        roles.execute("REVOKE team FROM app, other")
    assert roles.rows(
        "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'taskflow'::regnamespace", database=database
    ) == [("team",)]


@pytest.mark.parametrize("owner", ["postgres", "other"], ids=["a superuser", "the owner of the database"])
async def test_a_role_that_was_granted_rights_works_where_it_trusts_the_owner(roles: PostgresServer, database: str, owner: str) -> None:
    roles.execute(f"ALTER DATABASE {database} OWNER TO other")
    await use(roles, database, owner)
    roles.execute(GRANTS, database)
    await use(roles, database, "app")


async def test_missing_rights_are_answered_with_the_lines_that_grant_them(roles: PostgresServer, database: str) -> None:
    await use(roles, database, "postgres")
    with pytest.raises(BrokerRefused, match="permission denied for schema taskflow") as refused:
        await use(roles, database, "app")
    lines = [line for line in str(refused.value).splitlines() if line.startswith("GRANT")]
    assert len(lines) == 3
    roles.execute("\n".join(lines), database)
    await use(roles, database, "app")


async def test_the_error_names_the_right_that_a_role_lacks_to_create_the_schema(roles: PostgresServer, database: str) -> None:
    """It needs no further right if the schema was created for it."""
    name = f'{database} of "app"'
    quoted = '"{}"'.format(name.replace('"', '""'))
    roles.execute(f"ALTER DATABASE {database} RENAME TO {quoted}; REVOKE CREATE ON DATABASE {quoted} FROM app")
    with pytest.raises(BrokerRefused, match="permission denied for database") as refused:
        await use(roles, name, "app")
    statement = str(refused.value).partition("or run: ")[2]
    assert statement == f'GRANT CREATE ON DATABASE {quoted} TO "app";'
    roles.execute("CREATE SCHEMA taskflow AUTHORIZATION app", name)
    await use(roles, name, "app")
    roles.execute(f"DROP SCHEMA taskflow CASCADE; {statement}", name)
    await use(roles, name, "app")


async def test_a_user_who_may_only_look_can_look(roles: PostgresServer, database: str) -> None:
    await use(roles, database, "postgres")
    roles.execute("GRANT USAGE ON SCHEMA taskflow TO app; GRANT SELECT ON ALL TABLES IN SCHEMA taskflow TO app", database)
    broker = connect(roles.url(database, "app"))
    assert [queue.name for queue in await broker.admin.queues()] != []
    with pytest.raises(BrokerRefused, match="refuses: permission denied for table"):
        await registered(broker)
    await broker.close()


async def test_a_database_that_checks_no_text(roles: PostgresServer) -> None:
    roles.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(BrokerRefused, match="encoding is SQL_ASCII, which does not validate text: use one with UTF8"):
        await use(roles, "ascii", "postgres")


async def test_a_schema_that_has_gone_is_made_anew_but_not_with_the_table_of_another_program(roles: PostgresServer, database: str) -> None:
    """The broker had checked the schema before."""
    broker = connect(roles.url(database))
    await one_job_is_done(broker)
    roles.execute("DROP SCHEMA taskflow CASCADE", database)
    await one_job_is_done(broker)
    await broker.close()
    roles.execute("DROP SCHEMA taskflow CASCADE; CREATE SCHEMA taskflow; CREATE TABLE taskflow.meta (name text, value text)", database)
    says = r"'taskflow' of PostgreSQL at .* has a table 'meta' without a version: it belongs to another program"
    with pytest.raises(BrokerRefused, match=says):
        await use(roles, database, "postgres")


FORBIDDEN: Final = [
    "SELECT * FROM taskflow.jobs",
    "UPDATE taskflow.jobs SET priority = 100",
    "DELETE FROM taskflow.jobs",
    "INSERT INTO taskflow.queues (id, rev, is_paused) VALUES ('default', 1, 1)",
    "SELECT * FROM taskflow.look(NULL, ARRAY[''::bytea], '{}', true, true)",
    "SELECT * FROM taskflow.scan('SELECT * FROM taskflow.jobs')",
    "SELECT * FROM taskflow.claim(NULL, NULL, ''::bytea, 1, '{}', 1, 1)",
    "SELECT * FROM taskflow.fade(10, 0, 0, 1, NULL)",
    "CREATE TABLE taskflow.mine (n integer)",
    "CREATE FUNCTION taskflow.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
]


async def test_a_sender_may_add_jobs_and_neither_read_nor_change_any(roles: PostgresServer, database: str) -> None:
    """It needs only usage of the schema, unless EXECUTE is restricted to some roles."""
    await use(roles, database, "app")
    roles.execute("GRANT USAGE ON SCHEMA taskflow TO mallory", database)
    as_sender = "SET ROLE mallory; SET statement_timeout = 10000; "
    send = f"{as_sender} SELECT taskflow.enqueue('work', queue => 'any', priority => 100)"
    roles.execute(send, database)
    for forbidden in FORBIDDEN:
        with pytest.raises(Exception, match="permission denied"):
            roles.execute(f"{as_sender} {forbidden}", database)
    [(function,)] = roles.rows("SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'enqueue' AND prosecdef", database=database)
    roles.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC", database)
    with pytest.raises(Exception, match="permission denied for function enqueue"):
        roles.execute(send, database)
    roles.execute(f"GRANT EXECUTE ON FUNCTION {function} TO mallory", database)
    roles.execute(send, database)


async def test_a_sender_learns_the_id_of_a_job_that_has_its_key_and_may_replace_that_job(roles: PostgresServer, database: str) -> None:
    """These are the two things that the page warns about."""
    broker = connect(roles.url(database))
    key = key_digest("default", "work", "k")
    standing = an_envelope(key=key)
    await broker.enqueue([standing])
    roles.execute("GRANT USAGE ON SCHEMA taskflow TO mallory", database)
    send = (
        "SELECT uuid_send(taskflow.enqueue('work', key => 'k', on_conflict => '{}')) "
        "FROM (SELECT set_config('role', 'mallory', true)) AS it"
    )
    assert roles.rows(send.format("keep"), database=database) == [(standing.id,)]
    [(sent,)] = roles.rows(send.format("replace"), database=database)
    await broker.upkeep(10)
    assert await broker.holders([key]) == [sent]
    await broker.close()
