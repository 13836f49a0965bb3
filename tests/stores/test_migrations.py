"""How tables are created, which roles may create them, and what the next release does to a store: it adds a kind of records and indexes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.redis.broker import RedisBroker
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from tests.stores.jobs import an_envelope
from tests.stores.migrating import MigratingDriver, PostgresDriver, ScriptFailed, SqliteDriver
from tests.stores.postgres import digest
from tests.stores.scene import one_job_is_done
from tests.support.servers import shared_redis


@pytest.fixture(params=[SqliteDriver, PostgresDriver], ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> MigratingDriver:
    made: MigratingDriver = request.param(tmp_path)
    return made


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    broker: Any = connect(url)
    try:
        yield broker
    finally:
        await broker.close()


async def test_of_twenty_at_once_one_makes_the_tables(driver: MigratingDriver) -> None:
    """None of them fails or finds half of the tables, whether it runs its first operation or a migration."""
    url = driver.nowhere()
    brokers: list[Any] = [connect(url) for _ in range(20)]
    verbs = [broker.enqueue([an_envelope()]) for broker in brokers[:10]]
    added, done = await asyncio.gather(asyncio.gather(*verbs), asyncio.gather(*(broker.migrate() for broker in brokers[10:])))
    assert all(isinstance(answer, Added) for [answer] in added)
    assert {upgrade.target for upgrade in done} == {VERSION}
    assert sum(bool(upgrade.migrations) for upgrade in done) <= 1
    [queue] = await brokers[0].admin.queues()
    assert sum(queue.counts.values()) == 10
    for broker in brokers:
        await broker.close()


async def test_with_migrate_0_the_error_says_how_to_migrate(driver: MigratingDriver) -> None:
    """Nothing is changed; the broker works after a migration."""
    says = rf"does not exist, but taskflow needs version {VERSION}\. It isn't migrated because of migrate=0: run `taskflow migrate`"
    async with opened(f"{driver.nowhere()}?migrate=0") as broker:
        plan = await broker.pending()
        with pytest.raises(BrokerRefused, match=says):
            await broker.enqueue([an_envelope()])
        assert await broker.pending() == plan
        await broker.migrate()  # only automatic migration is disabled
        await one_job_is_done(broker)


@pytest.mark.parametrize("options", ["", "?migrate=0"])
async def test_newer_tables_are_refused_by_all(driver: MigratingDriver, options: str) -> None:
    url = driver.of_the_next_version()
    async with opened(url + options) as broker:
        for ask in (lambda: broker.enqueue([an_envelope()]), broker.pending, broker.migrate, broker.sql):
            with pytest.raises(BrokerRefused, match=f"version {VERSION + 1}, (this one supports|but taskflow supports only) {VERSION}"):
                await ask()


async def test_an_administrator_runs_the_script(driver: MigratingDriver) -> None:
    """It has the effect of `migrate`. A second time it does nothing."""
    url, twin = driver.nowhere(), driver.nowhere()
    async with opened(twin) as broker:
        await broker.migrate()
    async with opened(f"{url}?migrate=0") as broker:
        script = await broker.sql()
        driver.run(url, script)
        assert driver.shape(url) == driver.shape(twin)
        await one_job_is_done(broker)
        with pytest.raises(ScriptFailed, match=driver.run_again):
            driver.run(url, script)
        await one_job_is_done(broker)
        assert (await broker.sql()).endswith(f" is up to date (version {VERSION})\n")


def test_sql_that_changes_makes_a_new_version() -> None:
    """An existing schema of the same version would never get the change."""
    pinned, now = digest.pinned(), digest.digests()
    changed = sorted(part for part in {*pinned, *now} - {"version"} if pinned.get(part) != now.get(part))
    assert not changed, (
        f"the SQL of {', '.join(changed)} is not what is pinned for version {pinned.get('version')}; a word or a rule's default may be "
        f"what has changed. Schemas that exist get it by a new version alone. While {VERSION} is not released: {digest.COMMAND}. Once it "
        f"is: write a migration, and raise VERSION in taskflow/broker/postgres/schema.py, then: {digest.COMMAND}"
    )


async def newer(url: str, *words: str) -> str:
    """Run the newer release, and return its output: the number of jobs, or an error."""
    program = [sys.executable, "-m", "tests.stores.newer_release", *words, url]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    printed, _ = await process.communicate()
    return printed.decode().strip()


@pytest.mark.slow
async def test_a_newer_release_adds_tables_and_indexes(driver: MigratingDriver) -> None:
    url, twin = driver.nowhere(), driver.nowhere()
    async with opened(url) as broker:
        await broker.enqueue([an_envelope()])
        before = driver.shape(url)
        assert "migrate=0" in await newer(f"{url}?migrate=0", "index")
        assert driver.shape(url) == before
        assert await newer(url, "index") == "2"
        await broker.enqueue([an_envelope()])  # it had begun before, and goes on
        assert await newer(f"{url}?migrate=0", "index") == "4"
    assert await newer(twin, "index") == "1"
    assert driver.shape(url) == driver.shape(twin) != before


@pytest.mark.slow
async def test_a_newer_release_prints_what_it_adds(driver: MigratingDriver) -> None:
    url = driver.nowhere()
    async with opened(url) as broker:
        await broker.enqueue([an_envelope()])
    driver.run(url, await newer(url, "index", "sql"))
    assert await newer(f"{url}?migrate=0", "index") == "2"


@pytest.fixture
def on_redis(request: pytest.FixtureRequest) -> str:
    return f"{shared_redis().url}?namespace={request.node.name}"


@pytest.mark.slow
async def test_a_new_kind_needs_nothing_on_redis(on_redis: str) -> None:
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
        assert await newer(on_redis) == "2"
        await broker.enqueue([an_envelope()])
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
    assert await newer(on_redis) == "5"


@pytest.mark.slow
async def test_redis_has_no_entries_of_a_new_index_until_it_is_rebuilt(on_redis: str) -> None:
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
    assert "without the index 'by_due': stop its workers and senders, and run `taskflow doctor --rebuild`" in await newer(on_redis, "index")
    assert await newer(on_redis, "index", "rebuild") == "2"
    assert await newer(on_redis, "index") == "3"
    async with opened(on_redis) as broker:
        with pytest.raises(BrokerRefused, match="with the index 'by_due', which this version does not know: use the other version"):
            await broker.enqueue([an_envelope()])
        await broker.admin.rebuild()  # back to this release: it is the newer one's entries that would be wrong from now on
        await broker.enqueue([an_envelope()])
    assert "without the index 'by_due'" in await newer(on_redis, "index")


async def test_names_of_indexes_that_cannot_be_read_count_for_nothing(on_redis: str) -> None:
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
        assert isinstance(broker, RedisBroker)
        key = f"{broker.prefix}meta"
        before = await broker.ask("HGET", key, "indexes")
        await broker.ask("HSET", key, "indexes", b"0 by_due . \xff")
    async with opened(on_redis) as broker:
        await broker.admin.rebuild()
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
        assert isinstance(broker, RedisBroker)
        assert await broker.ask("HGET", key, "indexes") == before
