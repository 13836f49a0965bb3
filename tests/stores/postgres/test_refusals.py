"""Servers that let nobody in, or not this one: a clear error, exit code 3, and no secret in what is said."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from taskflow import BrokerRefused
from taskflow.broker.url import connect
from taskflow.cli.exits import Exit
from tests.cli.processes import OUR_FRAMES, Shell
from tests.stores.one_job import one_job_is_done
from tests.stores.refusals import SECRET, WRONG, exits_by_broker
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.servers import HOST, free_port


async def make_schema(server: PostgresServer, database: str) -> None:
    broker = connect(server.url(database))
    await broker.read([bytes(16)])
    await broker.close()


# --- passwords, names, rights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[PostgresServer]:
    """Its user app has a password."""
    with PostgresServer(fsync=False, access=["host all app all scram-sha-256"]) as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}'")
        yield server


@pytest.mark.parametrize("password", [None, WRONG], ids=["none", "a wrong one"])
def test_a_wrong_password(locked: PostgresServer, shell: Shell, password: str | None) -> None:
    exits_by_broker(shell, locked.url(user="app", password=password), f"PostgreSQL at {HOST}:{locked.port} refuses: .*password")


async def test_the_right_password(locked: PostgresServer) -> None:
    database = locked.new_database()
    locked.execute(f"ALTER DATABASE {database} OWNER TO app")
    broker = connect(locked.url(database, user="app", password=SECRET))
    assert await broker.read([bytes(16)]) == [None]
    assert SECRET not in repr(broker)
    await broker.close()


def test_a_database_that_is_not_there(shell: Shell) -> None:
    exits_by_broker(shell, shared_postgres().url("nowhere"), 'refuses: database "nowhere" does not exist')


def test_a_user_who_may_not_make_the_schema(locked: PostgresServer, shell: Shell) -> None:
    exits_by_broker(shell, locked.url(locked.new_database(), user="app", password=SECRET), "refuses: permission denied for database")


async def test_a_user_who_may_not_see_into_the_schema(locked: PostgresServer, shell: Shell) -> None:
    database = locked.new_database()
    await make_schema(locked, database)
    exits_by_broker(shell, locked.url(database, user="app", password=SECRET), "refuses: permission denied for schema taskflow")


async def test_a_user_who_may_only_look(locked: PostgresServer, shell: Shell) -> None:
    """The command that looks does what it can; the worker is refused at its start, and does not pretend to work."""
    database = locked.new_database()
    await make_schema(locked, database)
    locked.execute("GRANT USAGE ON SCHEMA taskflow TO app; GRANT SELECT ON ALL TABLES IN SCHEMA taskflow TO app", database)
    shell.environment["TASKFLOW_BROKER"] = locked.url(database, user="app", password=SECRET)
    worker, queues = shell.taskflow("worker", "tasks"), shell.taskflow("queues")
    assert queues.end() == Exit.OK, queues.said
    assert worker.end() == Exit.BROKER, worker.said
    assert re.search("refuses: permission denied for table", worker.said), worker.said
    assert not OUR_FRAMES.search(worker.said), worker.said


async def test_a_user_who_may_do_what_is_needed_and_no_more(locked: PostgresServer) -> None:
    """Neither own the schema nor make anything."""
    database = locked.new_database()
    await make_schema(locked, database)
    locked.execute(
        "GRANT USAGE ON SCHEMA taskflow TO app; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA taskflow TO app; "
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA taskflow TO app",
        database,
    )
    broker = connect(locked.url(database, user="app", password=SECRET))
    await one_job_is_done(broker)
    await broker.close()


# --- servers that do not write --------------------------------------------------------------------------------------


def test_a_standby(shell: Shell) -> None:
    with PostgresServer(fsync=False) as server:
        server.stop()
        server.data.joinpath("standby.signal").touch()
        server.start()
        exits_by_broker(shell, server.url(), "read-only standby: name the primary")


async def test_a_database_that_is_read_only(shell: Shell) -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    await asyncio.to_thread(exits_by_broker, shell, server.url(database), "read-only transaction")


def test_nobody_there(shell: Shell) -> None:
    exits_by_broker(shell, f"postgresql://app:{SECRET}@{HOST}:{(port := free_port())}/app", f"PostgreSQL at {HOST}:{port} does not answer")


def test_tls_asked_of_a_server_without(shell: Shell) -> None:
    exits_by_broker(shell, f"{shared_postgres().url(password=SECRET)}?tls=require", "PostgreSQL at .* offers no TLS, which tls=require")


async def test_a_schema_of_somebody_else() -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute("CREATE SCHEMA taskflow; CREATE TABLE taskflow.jobs (id integer)", database)
    broker = connect(server.url(database))
    with pytest.raises(BrokerRefused, match="already exists"):
        await broker.read([bytes(16)])
    await broker.close()
