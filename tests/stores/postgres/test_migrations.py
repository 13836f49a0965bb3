"""From one version of the schema to the next, with the jobs that lie in it and the workers that are at work."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import pytest

from taskflow.broker.postgres import PostgresBroker, migrations
from taskflow.broker.postgres.migrations import LOCKED_WITHIN, MIGRATIONS, VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settled
from tests.stores.one_job import one_job_is_done
from tests.stores.postgres import digest
from tests.stores.postgres.versions import NEXT, next_version, of_this_version, without_meta_commands
from tests.stores.scene import until
from tests.support.pgbouncer import PgBouncer
from tests.support.pgbouncer import is_there as pgbouncer_is_there
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.verdicts import cancelled, failed, retried, succeeded

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


# --- what lies in it -------------------------------------------------------------------------------------------------


class Stock:
    """Jobs in every status, in a store that a client of this version works with. One is leased, by the session's last request."""

    def __init__(self, broker: PostgresBroker) -> None:
        self._broker = broker
        self.session = Session(id=new_id(), name="somewhere:1", queues=("default",), concurrency=7, ttl=3600.0)
        self.requests = 0
        self.ids: list[bytes] = []

    async def fill(self) -> None:
        await self._broker.register(self.session)
        await self._broker.settle([succeeded(await self.lease(job="good"))])
        await self._broker.settle([failed(await self.lease(job="bad"))])
        await self._broker.settle([retried(await self.lease(job="worse", max_attempts=2), after=3600.0)])
        await self._broker.settle([cancelled(await self.lease())])
        await self.add(queue="mail")
        await self.add(queue="mail", priority=5, headers={"from": "web"})
        await self.add(queue="mail", priority=-5, expires=3600.0, timeout=7.0)
        await self.add(after=3600.0)
        leader = await self.add(awaits=1)
        await self.lease(key=b"a key of 16 bytes", joins=(leader,))
        await self.add(key=b"a key of 16 bytes", on_conflict=OnConflict.REPLACE)  # it waits behind the one that runs
        await self._broker.console.pause("mail")

    async def add(self, **fields: Any) -> bytes:
        envelope = an_envelope(**fields)
        assert await self._broker.enqueue([envelope]) == [Added(envelope.id)]
        self.ids.append(envelope.id)
        return envelope.id

    async def lease(self, **fields: Any) -> Lease:
        added = await self.add(**fields)
        self.requests += 1
        [lease] = await self._broker.claim(self.session.id, self.requests, ["default"], 1)
        assert lease.envelope.id == added
        return lease


async def all_that_is_there(broker: PostgresBroker, ids: list[bytes]) -> dict[str, Any]:
    queues, workers = await broker.console.queues(), await broker.console.workers()
    return {
        "jobs": await broker.read(ids),
        "queues": [(queue.name, queue.is_paused, queue.counts) for queue in queues],
        "workers": [(worker.session, worker.registered_at, worker.leases, worker.is_dying) for worker in workers],
        "metrics": await broker.console.metrics(),
    }


async def test_what_lies_in_an_older_schema_stays_and_runs_on() -> None:
    """Jobs in every status, counts, pauses and sessions; the first use migrates. A lease from before is settled after."""
    server = shared_postgres()
    url = server.url(of_this_version(server))
    async with an_old_one(url) as old:
        stock = Stock(old)
        await stock.fill()
        before = await all_that_is_there(old, stock.ids)
    statuses = {record.status for record in before["jobs"]}
    assert statuses == {*Status}

    with next_version():
        async with a_broker(url) as broker:
            assert await all_that_is_there(broker, stock.ids) == before
            assert await version_of(broker) == NEXT
            await all_runs_on(broker, stock)


async def all_runs_on(broker: PostgresBroker, stock: Stock) -> None:
    [lease] = await broker.claim(stock.session.id, stock.requests, ["default"], 10)  # the answer to the last request, again
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    await broker.console.resume("mail")
    leases = await broker.claim(stock.session.id, stock.requests + 1, ["mail", "default"], 10)
    assert [lease.envelope.priority for lease in leases] == [5, 0, -5, 0, 0]  # with the two that have waited for the first one's end
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * 5
    left = {record.status for record in await broker.read(stock.ids) if record is not None}
    assert left == {Status.SUCCEEDED, Status.FAILED, Status.SCHEDULED, Status.CANCELLED}
    await one_job_is_done(broker)


CATALOG: Final = {
    "columns": "SELECT relname, attname, attnum, format_type(atttypid, atttypmod), attnotnull, attidentity, attcollation, "
    "pg_get_expr(adbin, adrelid) FROM pg_attribute JOIN ours ON ours.oid = attrelid AND relkind IN ('r', 'v', 'S') "
    "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attnum > 0 AND NOT attisdropped",
    "relations": "SELECT relname, relkind, reloptions FROM ours WHERE relkind <> 't'",
    "indexes": "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN ours ON ours.oid = indrelid",
    "constraints": "SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint JOIN ours ON ours.oid = conrelid",
    "functions": "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = $1::regnamespace",
    "triggers": "SELECT pg_get_triggerdef(pg_trigger.oid) FROM pg_trigger JOIN ours ON ours.oid = tgrelid WHERE NOT tgisinternal",
    "types": "SELECT typname, conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_type JOIN pg_constraint ON contypid = pg_type.oid "
    "WHERE typnamespace = $1::regnamespace",
    "views": "SELECT relname, pg_get_viewdef(oid) FROM ours WHERE relkind = 'v'",
}
OURS: Final = "WITH ours AS (SELECT * FROM pg_class WHERE relnamespace = $1::regnamespace)"


def catalog(server: PostgresServer, database: str) -> dict[str, list[str]]:
    """What the schema is made of, without the numbers by which the server knows it."""
    return {part: sorted(map(str, server.rows(f"{OURS} {query}", "taskflow", database=database))) for part, query in CATALOG.items()}


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


@in_next_version
async def test_of_twenty_at_once_one_migrates() -> None:
    """None of them fails, whether it comes by its first verb or to migrate."""
    server = shared_postgres()
    url = server.url(of_this_version(server))
    brokers = [connect(url) for _ in range(20)]
    assert all(isinstance(broker, PostgresBroker) for broker in brokers)

    verbs = [broker.enqueue([an_envelope()]) for broker in brokers[:10]]
    upgrades = [broker.migrate() for broker in brokers[10:] if isinstance(broker, PostgresBroker)]
    added, done = await asyncio.gather(asyncio.gather(*verbs), asyncio.gather(*upgrades))

    assert all(isinstance(answer, Added) for [answer] in added)
    assert {upgrade.target for upgrade in done} == {NEXT}
    assert sum(bool(upgrade.migrations) for upgrade in done) <= 1
    [queue] = await brokers[0].console.queues()
    assert sum(queue.counts.values()) == 10
    for broker in brokers:
        await broker.close()


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


# --- unless told otherwise -------------------------------------------------------------------------------------------


@in_next_version
@pytest.mark.parametrize("stands", ["is not there", f"is of version {VERSION}"])
async def test_who_is_told_not_to_migrate_says_what_to_do(stands: str) -> None:
    """Nothing is changed; it works once somebody has migrated."""
    server = shared_postgres()
    database = of_this_version(server) if "version" in stands else server.new_database()
    before = catalog(server, database) if "version" in stands else None
    url = f"{server.url(database)}?migrate=0"
    says = f"{stands}, this taskflow needs version {NEXT}, and must not migrate by itself (migrate=0): run `taskflow migrate`"
    async with a_broker(url) as broker:
        with pytest.raises(BrokerRefused, match=re.escape(says)):
            await broker.enqueue([an_envelope()])
        assert before is None or catalog(server, database) == before

        await broker.migrate()  # what it is told is not to do so by itself

        await one_job_is_done(broker)


@pytest.mark.parametrize("options", ["", "?migrate=0"])
async def test_a_newer_schema_is_refused_by_all(options: str) -> None:
    server = shared_postgres()
    with next_version():
        database = await fresh(server)
    async with a_broker(server.url(database) + options) as broker:
        for ask in (lambda: broker.enqueue([an_envelope()]), broker.pending, broker.migrate, broker.sql):
            with pytest.raises(BrokerRefused, match=f"of version {NEXT}, this taskflow knows {VERSION}: update it"):
                await ask()


async def test_somebody_elses_table_meta_is_refused() -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute("CREATE SCHEMA taskflow; CREATE TABLE taskflow.meta (name text, value text)", database)
    async with a_broker(server.url(database)) as broker:
        with pytest.raises(BrokerRefused, match=r"'taskflow' of PostgreSQL at .* has a table meta without a version: it is not taskflow's"):
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
            r"transaction of \d+ s, which holds locks on its tables; end it, or wait for its end, and try again",
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
    assert unmarked(server, url) == ["enqueue"]


def unmarked(server: PostgresServer, url: str) -> list[str]:
    """The functions that no migration would drop."""
    query = "SELECT proname FROM pg_proc WHERE pronamespace = 'taskflow'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL"
    return [name for (name,) in server.rows(query, database=url.rpartition("/")[2])]


# --- the script ------------------------------------------------------------------------------------------------------


def by_driver(server: PostgresServer, database: str, script: str) -> None:
    server.execute(without_meta_commands(script), database)


def by_psql(server: PostgresServer, database: str, script: str) -> None:
    psql = shutil.which("psql") or server.binary.with_name("psql")
    if not Path(psql).exists():
        if os.environ.get("CI"):
            pytest.fail("there is no psql on this machine: apt-get install postgresql-client")
        pytest.skip("there is no psql on this machine: apt-get install postgresql-client (where CI is set, that is a failure)")
    ran = subprocess.run([psql, "--no-psqlrc", "--quiet", server.url(database)], input=script, text=True, capture_output=True)
    if ran.returncode:
        raise asyncpg.PostgresError(ran.stderr)


@in_next_version
@pytest.mark.parametrize("run", [by_driver, by_psql])
@pytest.mark.parametrize("make", [of_this_version, PostgresServer.new_database])
async def test_an_administrator_runs_the_script(
    make: Callable[[PostgresServer], str], run: Callable[[PostgresServer, str, str], None]
) -> None:
    """On a schema of an older version, and where there is none. A second time it does nothing."""
    server = shared_postgres()
    database = make(server)
    async with a_broker(f"{server.url(database)}?migrate=0") as broker:
        script = await broker.sql()
        run(server, database, script)
        await one_job_is_done(broker)
        assert catalog(server, database) == catalog(server, await fresh(server))

        with pytest.raises(asyncpg.PostgresError, match="let `taskflow migrate --sql` print this script anew"):
            run(server, database, script)
        await one_job_is_done(broker)
        assert await broker.sql() == f"-- schema 'taskflow' is up to date (version {NEXT})\n"


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
