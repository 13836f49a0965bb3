"""Servers that let nobody in, or not this one, and schemas that are another program's, are of another version, or have gone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from taskflow import BrokerRefused
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.url import connect
from taskflow.cli.exit_codes import Exit
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from tests.cli.inprocess import Cli
from tests.cli.processes import OUR_FRAMES
from tests.stores.postgres import digest
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


new_id = IdFactory()


@asynccontextmanager
async def a_broker(url: str) -> AsyncIterator[PostgresBroker]:
    broker = connect(url)
    assert isinstance(broker, PostgresBroker)
    try:
        yield broker
    finally:
        await broker.close()


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


async def test_a_schema_that_was_made_for_us_needs_no_right_to_make_one() -> None:
    server = shared_postgres()
    database = server.new_database()
    role = f"app_{database}"
    server.execute(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA taskflow AUTHORIZATION {role}", database)
    async with a_broker(server.url(database, role)) as broker:
        assert [type(answer) for answer in await broker.enqueue([an_envelope()])] == [Added]


async def test_a_schema_that_has_gone_is_made_anew() -> None:
    """By a broker that had looked at it."""
    server = shared_postgres()
    database = server.new_database()
    async with a_broker(server.url(database)) as broker:
        await broker.enqueue([an_envelope()])
        server.execute("DROP SCHEMA taskflow CASCADE", database)
        assert [type(answer) for answer in await broker.enqueue([an_envelope()])] == [Added]


async def test_somebody_elses_table_meta_is_refused() -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute("CREATE SCHEMA taskflow; CREATE TABLE taskflow.meta (name text, value text)", database)
    async with a_broker(server.url(database)) as broker:
        with pytest.raises(
            BrokerRefused, match=r"'taskflow' of PostgreSQL at .* has a table meta without a version: it belongs to another program"
        ):
            await broker.enqueue([an_envelope()])


def test_sql_that_changes_makes_a_new_version() -> None:
    """A schema of the same version that is there already would never get the change."""
    pinned, now = digest.pinned(), digest.digests()
    changed = sorted(part for part in {*pinned, *now} - {"version"} if pinned.get(part) != now.get(part))

    assert not changed, (
        f"the SQL of {', '.join(changed)} is not what is pinned for version {pinned.get('version')}; a word or a rule's default may be "
        f"what has changed. Schemas that exist get it by a new version alone. While {VERSION} is not released: {digest.COMMAND}. Once it "
        f"is: write a migration, and raise VERSION in taskflow/broker/postgres/schema.py, then: {digest.COMMAND}"
    )
