"""How tables are made, and who may make them. There is one version of the tables so far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker.migrations import Migrating
from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from tests.stores.jobs import an_envelope
from tests.stores.migrating import MigratingDriver, PostgresDriver, ScriptFailed, SqliteDriver
from tests.stores.postgres import digest
from tests.stores.scene import one_job_is_done


@pytest.fixture(params=[SqliteDriver, PostgresDriver], ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> MigratingDriver:
    made: MigratingDriver = request.param(tmp_path)
    return made


@asynccontextmanager
async def a_broker(url: str) -> AsyncIterator[Any]:
    broker = connect(url)
    assert isinstance(broker, Migrating)
    try:
        yield broker
    finally:
        await broker.close()


async def test_of_twenty_at_once_one_makes_the_tables(driver: MigratingDriver) -> None:
    """None of them fails or finds half of it, whether it comes by its first operation or to migrate."""
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


async def test_who_is_told_not_to_migrate_says_what_to_do(driver: MigratingDriver) -> None:
    """Nothing is changed; it works once somebody has migrated."""
    says = rf"does not exist, this taskflow needs version {VERSION}, and may not migrate it \(migrate=0\): run `taskflow migrate`"
    async with a_broker(f"{driver.nowhere()}?migrate=0") as broker:
        plan = await broker.pending()
        with pytest.raises(BrokerRefused, match=says):
            await broker.enqueue([an_envelope()])
        assert await broker.pending() == plan
        await broker.migrate()  # what it is told is not to do so by itself
        await one_job_is_done(broker)


@pytest.mark.parametrize("options", ["", "?migrate=0"])
async def test_newer_tables_are_refused_by_all(driver: MigratingDriver, options: str) -> None:
    url = driver.of_the_next_version()
    async with a_broker(url + options) as broker:
        for ask in (lambda: broker.enqueue([an_envelope()]), broker.pending, broker.migrate, broker.sql):
            with pytest.raises(BrokerRefused, match=f"version {VERSION + 1}, (this one|but this taskflow) knows {VERSION}"):
                await ask()


async def test_an_administrator_runs_the_script(driver: MigratingDriver) -> None:
    """It does what `migrate` does. A second time it does nothing."""
    url, twin = driver.nowhere(), driver.nowhere()
    async with a_broker(twin) as broker:
        await broker.migrate()
    async with a_broker(f"{url}?migrate=0") as broker:
        script = await broker.sql()
        driver.run(url, script)
        assert driver.shape(url) == driver.shape(twin)
        await one_job_is_done(broker)
        with pytest.raises(ScriptFailed, match=driver.run_again):
            driver.run(url, script)
        await one_job_is_done(broker)
        assert (await broker.sql()).endswith(f" is up to date (version {VERSION})\n")


def test_sql_that_changes_makes_a_new_version() -> None:
    """A schema of the same version that is there already would never get the change."""
    pinned, now = digest.pinned(), digest.digests()
    changed = sorted(part for part in {*pinned, *now} - {"version"} if pinned.get(part) != now.get(part))
    assert not changed, (
        f"the SQL of {', '.join(changed)} is not what is pinned for version {pinned.get('version')}; a word or a rule's default may be "
        f"what has changed. Schemas that exist get it by a new version alone. While {VERSION} is not released: {digest.COMMAND}. Once it "
        f"is: write a migration, and raise VERSION in taskflow/broker/postgres/schema.py, then: {digest.COMMAND}"
    )
