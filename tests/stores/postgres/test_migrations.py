"""From one version of the schema to the next, with the jobs that lie in it and the workers that are at work."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import pytest

from taskflow.broker.postgres import PostgresBroker, migrations
from taskflow.broker.postgres.migrations import LOCKED_WITHIN, MIGRATIONS, VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settled
from tests.stores.postgres import digest
from tests.stores.postgres.versions import CATALOG, NEXT, catalog, next_version, of_this_version
from tests.support.pgbouncer import PgBouncer, is_there as pgbouncer_is_there
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.verdicts import succeeded
from tests.support.waiting import until

T = TypeVar("T")

new_id = IdFactory()


@asynccontextmanager
async def a_broker(url: str) -> AsyncIterator[PostgresBroker]:
    broker = connect(url)
    assert isinstance(broker, PostgresBroker)
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def an_old_one(url: str) -> AsyncIterator[PostgresBroker]:
    """It has looked at the schema when that was of this version, and knows nothing of another."""
    async with a_broker(url) as broker:
        assert await version_of(broker) == VERSION
        await broker.console.queues()
        yield broker


@asynccontextmanager
async def a_next_one(url: str) -> AsyncIterator[PostgresBroker]:
    with next_version():
        async with a_broker(url) as broker:
            yield broker


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


@pytest.fixture
def next_one() -> Iterator[None]:
    with next_version():
        yield


in_next_version = pytest.mark.usefixtures("next_one")


async def version_of(broker: PostgresBroker) -> int:
    return (await broker.pending()).version


async def fresh(server: PostgresServer) -> str:
    """A new database with a schema of the version that taskflow has now."""
    database = server.new_database()
    async with a_broker(server.url(database)) as broker:
        assert (await broker.migrate()).target == migrations.VERSION
    return database


async def test_a_migrated_schema_is_that_of_a_fresh_one() -> None:
    """Columns, types, defaults, indexes, constraints, functions, triggers and views; nothing of the old version is left over."""
    server = shared_postgres()
    database = of_this_version(server)
    before = catalog(server, database)
    with next_version():
        async with a_broker(server.url(database)) as broker:
            done = await broker.migrate()
        assert (done.version, done.target, len(done.migrations)) == (VERSION, NEXT, 1)
        migrated, made = catalog(server, database), catalog(server, await fresh(server))

    assert {part for part in CATALOG if migrated[part] != before[part]} == {"columns", "indexes", "constraints", "functions", "types"}
    assert all(rows for rows in made.values())
    for part, of_fresh in made.items():
        assert migrated[part] == of_fresh, part


# --- while others work -----------------------------------------------------------------------------------------------


class Fleet:
    """Workers and senders that know this version. They resend what BrokerUnavailable answers, as the real ones do; all else is fatal."""

    def __init__(self, url: str, jobs: int) -> None:
        self._url = url
        self._left = jobs
        self.ids: list[bytes] = []
        self.settled = Counter[bytes]()
        self.leased = Counter[bytes]()
        self.resent = 0

    async def send(self) -> None:
        async with an_old_one(self._url) as broker:
            while self._left > 0:
                self._left -= 3
                envelopes = [an_envelope(queue=f"queue{number}") for number in range(2)]
                envelopes.append(an_envelope(key=new_id()))
                answers = await self._resending(lambda given=envelopes: broker.enqueue(given))  # type: ignore[misc]
                assert len(answers) == len(envelopes)
                self.ids += [envelope.id for envelope in envelopes]

    async def work(self, number: int) -> None:
        session = Session(id=new_id(), name=f"worker{number}")
        async with an_old_one(self._url) as broker:
            await broker.register(session)
            request = 0
            while self._left > 0 or len(self.settled) < len(self.ids):
                request += 1
                leases = await self._resending(lambda: broker.claim(session.id, request, [], 4))  # noqa: B023
                self.leased.update(lease.envelope.id for lease in leases)
                claims = [lease.claim for lease in leases]
                beat = Beat(session=session.id, claims=tuple(claims), seen=request)
                answer = await self._resending(lambda: broker.beat(beat))  # noqa: B023
                assert not answer.lost
                answers = await self._resending(lambda: broker.settle([succeeded(lease) for lease in leases]))  # noqa: B023
                assert answers == [Settled.OK] * len(leases)
                self.settled.update(lease.envelope.id for lease in leases)
                await self._resending(lambda: broker.upkeep(10))
                await asyncio.sleep(0 if leases else 0.01)

    async def _resending(self, verb: Callable[[], Awaitable[T]]) -> T:
        for _ in range(50):
            try:
                return await verb()
            except BrokerUnavailable:
                self.resent += 1
                await asyncio.sleep(0.05)
        return await verb()


@pytest.mark.parametrize("pause", [0.0, 0.3, 0.7])
async def test_workers_of_the_version_before_work_on_while_it_is_migrated(pause: float) -> None:
    """While it is migrated and after, with statements that were prepared before: no verb fails, each job is done once, none is lost."""
    server = shared_postgres()
    url = server.url(of_this_version(server))
    fleet = Fleet(url, jobs=900)

    async def migrate() -> None:
        await until(lambda: len(fleet.settled) >= 90)
        await asyncio.sleep(pause)
        with next_version():
            async with a_broker(url) as broker:
                assert (await broker.migrate()).target == NEXT

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(migrate())
        for _ in range(2):
            group.create_task(fleet.send())
        for number in range(4):
            group.create_task(fleet.work(number))

    once = dict.fromkeys(fleet.ids, 1)
    assert fleet.settled == once
    assert fleet.leased == once
    async with a_next_one(url) as broker:
        assert await version_of(broker) == NEXT
        records = await broker.read(fleet.ids)
        assert {record.status for record in records if record is not None} == {Status.SUCCEEDED}
        totals = Counter[str]()
        for events in (await broker.console.metrics()).totals.values():
            totals.update(events)
        assert (totals["enqueue"], totals["claim"], totals["succeed"]) == (len(fleet.ids),) * 3


async def test_a_read_that_waits_for_a_migration_sees_rows_that_it_has_rewritten() -> None:
    """A snapshot from before would see none of them, so the settlement would be STALE."""
    server = shared_postgres()
    url = server.url(of_this_version(server))
    session = Session(id=new_id(), name="worker")
    async with an_old_one(url) as broker:
        await broker.enqueue([an_envelope(key=new_id())])
        await broker.register(session)
        [lease] = await broker.claim(session.id, 1, [], 1)
        migrating = await asyncpg.connect(url)
        await migrating.execute(
            "BEGIN; LOCK TABLE taskflow.meta, taskflow.jobs; ALTER TABLE taskflow.jobs ADD COLUMN note float8 DEFAULT random()"
        )
        reading = asyncio.create_task(broker.read([lease.envelope.id]))
        settling = asyncio.create_task(broker.settle([succeeded(lease)]))
        while await migrating.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await migrating.execute("COMMIT")
        await migrating.close()
        [record] = await reading
        assert record is not None
        assert await settling == [Settled.OK]


@in_next_version
async def test_what_is_not_ours_in_the_schema_stays_as_it_is() -> None:
    """Functions, also those that a trigger uses, and tables: a namespace may be somebody's own schema, `public` for example."""
    server = shared_postgres()
    database = of_this_version(server)
    server.execute(
        "CREATE TABLE taskflow.theirs (n integer); "
        "CREATE FUNCTION taskflow.my_own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER mine BEFORE INSERT ON taskflow.theirs FOR EACH ROW EXECUTE FUNCTION taskflow.my_own(); "
        "CREATE FUNCTION taskflow.total() RETURNS integer LANGUAGE sql AS 'SELECT 7'",
        database,
    )
    reader = await asyncpg.connect(server.url(database))
    await reader.execute("BEGIN; SELECT count(*) FROM taskflow.theirs")  # which the migration need not wait for
    async with a_broker(server.url(database)) as broker:
        assert (await broker.migrate()).target == NEXT
    await reader.close()
    assert server.rows("INSERT INTO taskflow.theirs VALUES (1) RETURNING n + taskflow.total()", database=database) == [(8,)]


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


@in_next_version
@pytest.mark.skipif(
    not os.environ.get("CI") and not pgbouncer_is_there(),
    reason="there is no pgbouncer on this machine: apt-get install pgbouncer (where CI is set, that is a failure)",
)
async def test_through_a_pooler() -> None:
    """In transaction mode, with fewer connections than there are who come at once."""
    server = shared_postgres()
    database = of_this_version(server)
    with PgBouncer(server, pool_size=2) as bouncer:
        url = f"{bouncer.url(database)}?pooled=1"
        brokers = [connect(url) for _ in range(6)]
        await asyncio.gather(*(one_of(broker) for broker in brokers))
    async with a_broker(server.url(database)) as broker:
        assert await version_of(broker) == NEXT


async def one_of(broker: Any) -> None:
    assert [type(answer) for answer in await broker.enqueue([an_envelope()])] == [Added]
    await broker.close()


async def test_somebody_elses_table_meta_is_refused() -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute("CREATE SCHEMA taskflow; CREATE TABLE taskflow.meta (name text, value text)", database)
    async with a_broker(server.url(database)) as broker:
        with pytest.raises(
            BrokerRefused, match=r"'taskflow' of PostgreSQL at .* has a table meta without a version: it belongs to another program"
        ):
            await broker.enqueue([an_envelope()])


@in_next_version
async def test_who_may_not_change_the_tables_is_told_who_may() -> None:
    server = shared_postgres()
    database = of_this_version(server)
    role = f"worker_{database}"
    server.execute(
        f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA taskflow TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA taskflow TO {role}",
        database,
    )
    async with a_broker(server.url(database, user=role)) as broker:
        for ask in (lambda: broker.enqueue([an_envelope()]), broker.migrate):
            with pytest.raises(BrokerRefused, match="may not change its tables: run `taskflow migrate` as their owner, postgres"):
                await ask()


# --- locks of others -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def somebody_reads(url: str) -> AsyncIterator[asyncpg.Connection]:
    """In a transaction that goes on: it holds the weakest lock there is on the jobs."""
    connection = await asyncpg.connect(url, server_settings={"application_name": "a report"})
    try:
        await connection.execute("BEGIN; SELECT count(*) FROM taskflow.jobs")
        yield connection
    finally:
        connection.terminate()


async def test_a_transaction_that_goes_on_is_waited_for_by_the_migration_and_not_by_the_others() -> None:
    """It tries a few times, then says who is in the way. Verbs wait for no longer than one try lasts."""
    server = shared_postgres()
    url = server.url(of_this_version(server))
    async with an_old_one(url) as old, somebody_reads(url) as reader, a_next_one(url) as broker:
        migrating = asyncio.create_task(broker.migrate())
        longest, number = 0.0, 0
        while not migrating.done():
            began_at = time.monotonic()
            await old.enqueue([an_envelope()])
            longest, number = max(longest, time.monotonic() - began_at), number + 1
        with pytest.raises(BrokerUnavailable) as raised:
            await migrating
        assert re.search(
            rf"could not be migrated from version {VERSION} to {NEXT}: process {reader.get_server_pid()} of the server \(a report\) has a "
            r"transaction of \d+ s, which holds locks on its tables; end it or wait for it, then try again",
            str(raised.value),
        )
        assert LOCKED_WITHIN / 2 < longest < LOCKED_WITHIN + 1.0
        assert number > 10
        assert await version_of(broker) == VERSION

        await reader.execute("COMMIT")
        assert (await broker.migrate()).target == NEXT
        assert sum(sum(queue.counts.values()) for queue in await old.console.queues()) == number


@in_next_version
async def test_a_transaction_that_ends_in_time_holds_nothing_up() -> None:
    server = shared_postgres()
    url = server.url(of_this_version(server))
    async with somebody_reads(url) as reader, a_broker(url) as broker:
        migrating = asyncio.create_task(broker.migrate())
        await asyncio.sleep(LOCKED_WITHIN + migrations.PAUSE / 2)  # after the first try, before the second
        assert not migrating.done()
        await reader.execute("COMMIT")
        assert (await migrating).target == NEXT
    assert unmarked(server, url) == ["enqueue", "enqueue_within", "settle_within"]


def unmarked(server: PostgresServer, url: str) -> list[str]:
    """The functions that no migration would drop."""
    query = "SELECT proname FROM pg_proc WHERE pronamespace = 'taskflow'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL"
    return [name for (name,) in server.rows(query, database=url.rpartition("/")[2])]


# --- the files -------------------------------------------------------------------------------------------------------


def test_migrations_are_numbered_from_one_on_and_say_what_they_do() -> None:
    """In their first line: ``-- 2: What it changes.``"""
    for migration in MIGRATIONS.after(0, "").migrations:
        assert migration.description
        assert MIGRATIONS.text(migration.version).startswith(f"-- {migration.version}: {migration.description}\n")


def test_sql_that_changes_makes_a_new_version() -> None:
    """A schema of the same version that is there already would never get the change."""
    pinned, now = digest.pinned(), digest.digests()
    changed = sorted(part for part in {*pinned, *now} - {"version"} if pinned.get(part) != now.get(part))

    assert not changed, (
        f"the SQL of {', '.join(changed)} is not what is pinned for version {pinned.get('version')}; a word or a rule's default may be "
        f"what has changed. Schemas that exist get it by a new version alone. While {VERSION} is not released: {digest.COMMAND}. Once it "
        f"is: leave its migrations as they are, add {VERSION + 1}.sql to taskflow/broker/postgres/schema (of its first line alone, "
        f"if only functions change), then: {digest.COMMAND}"
    )
