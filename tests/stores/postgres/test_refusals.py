"""Servers that let nobody in, or not this one: a clear error, exit code 3, and no secret in what is said."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from taskflow import BrokerRefused
from taskflow.broker.url import connect
from taskflow.cli.exit_codes import Exit
from tests.cli.inprocess import Cli
from tests.cli.processes import OUR_FRAMES
from tests.stores.one_job import one_job_is_done
from tests.stores.refusals import SECRET, exits_by_broker, locked_postgres
from tests.support.postgres import PostgresServer, shared_postgres

pytestmark = pytest.mark.xdist_group("refusals of postgres")


async def make_schema(server: PostgresServer, database: str) -> None:
    broker = connect(server.url(database))
    await broker.read([bytes(16)])
    await broker.close()


# --- passwords, names, rights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[PostgresServer]:
    with locked_postgres() as server:
        yield server


@pytest.mark.parametrize(
    ("change", "says"),
    [({"database": "nowhere"}, 'database "nowhere" does not exist'), ({"user": "nobody"}, 'role "nobody" does not exist')],
)
async def test_a_database_or_a_user_that_is_not_there(change: dict[str, str], says: str) -> None:
    broker = connect(shared_postgres().url(**change))
    with pytest.raises(BrokerRefused, match=f"refuses: {says}"):
        await broker.read([bytes(16)])
    await broker.close()


MISSING = "schema 'taskflow' does not exist"


def test_a_user_who_may_not_see_into_the_schema(locked: PostgresServer, cli: Cli) -> None:
    database = locked.new_database()
    asyncio.run(make_schema(locked, database))
    exits_by_broker(cli, locked.url(database, user="app", password=SECRET), "refuses: permission denied for schema taskflow")


def test_a_user_who_may_only_look(locked: PostgresServer, cli: Cli) -> None:
    """The command that looks does what it can; the worker is refused at its start, and does not pretend to work."""
    database = locked.new_database()
    asyncio.run(make_schema(locked, database))
    locked.execute("GRANT USAGE ON SCHEMA taskflow TO app; GRANT SELECT ON ALL TABLES IN SCHEMA taskflow TO app", database)
    url = locked.url(database, user="app", password=SECRET)
    cli("queues", "--broker", url)
    cli.write("tasks.py", "from taskflow import job\n\n@job\nasync def note() -> None: ...\n")
    worker = cli("worker", "tasks", "--broker", url, code=Exit.BROKER)
    assert re.search("refuses: permission denied for table", worker.err), worker
    assert not OUR_FRAMES.search(worker.err), worker


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


def test_a_standby(cli: Cli) -> None:
    with PostgresServer(fsync=False) as server:
        server.stop()
        server.data.joinpath("standby.signal").touch()
        server.start()
        exits_by_broker(cli, server.url(), "read-only standby: name the primary")


def test_a_database_that_is_read_only(cli: Cli) -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    exits_by_broker(cli, server.url(database), "read-only transaction", look=MISSING)


async def test_a_database_that_checks_no_text() -> None:
    server = shared_postgres()
    name = server.new_database() + "_ascii"
    server.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    broker = connect(server.url(name))
    with pytest.raises(BrokerRefused, match="the database has the encoding SQL_ASCII, which checks no text: use one with UTF8"):
        await broker.read([bytes(16)])
    await broker.close()
    server.drop_database(name)
