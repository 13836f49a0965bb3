"""From one version of the tables to the next, with the jobs that lie in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from taskflow.broker.migrations import Migrating
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.verdict import Settled
from tests.stores.migrating import MigratingDriver, PostgresDriver, PsqlDriver, ScriptFailed, SqliteDriver
from tests.stores.one_job import one_job_is_done
from tests.support.verdicts import cancelled, failed, retried, succeeded

new_id = IdFactory()


@pytest.fixture(params=[SqliteDriver], ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> MigratingDriver:
    made: MigratingDriver = request.param(tmp_path)
    return made


@pytest.fixture
def _next_version(driver: MigratingDriver) -> Iterator[None]:
    with driver.next_version():
        yield


in_next_version = pytest.mark.usefixtures("_next_version")

STORES: Final = [(SqliteDriver, "of_this_version"), (SqliteDriver, "nowhere"), (PostgresDriver, "nowhere")]
made = pytest.mark.parametrize(("driver", "make"), STORES, indirect=["driver"])
"""A store of the older version, and none at all."""


@asynccontextmanager
async def a_broker(url: str) -> AsyncIterator[Any]:
    broker = connect(url)
    assert isinstance(broker, Migrating)
    try:
        yield broker
    finally:
        await broker.close()


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


class Stock:
    """Jobs in every status, in a store that a client of this version works with. One is leased, by the session's last request."""

    def __init__(self, broker: Broker) -> None:
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


async def all_that_is_there(broker: Broker, ids: list[bytes]) -> dict[str, Any]:
    queues, workers = await broker.console.queues(), await broker.console.workers()
    return {
        "jobs": await broker.read(ids),
        "queues": [(queue.name, queue.is_paused, queue.counts) for queue in queues],
        "workers": [(worker.session, worker.registered_at, worker.leases, worker.is_dying) for worker in workers],
        "metrics": await broker.console.metrics(),
    }


async def test_what_lies_in_an_older_store_stays_and_runs_on(driver: SqliteDriver) -> None:
    """Jobs in every status, counts, pauses and sessions; the first use migrates. A lease from before is settled after."""
    url = driver.of_this_version()
    async with a_broker(url) as old:
        stock = Stock(old)
        await stock.fill()
        before = await all_that_is_there(old, stock.ids)
    assert {record.status for record in before["jobs"]} == {*Status}

    with driver.next_version():
        async with a_broker(url) as broker:
            assert await all_that_is_there(broker, stock.ids) == before
            assert (await broker.pending()).version == driver.newer
            await all_runs_on(broker, stock)


async def all_runs_on(broker: Broker, stock: Stock) -> None:
    [lease] = await broker.claim(stock.session.id, stock.requests, ["default"], 10)  # the answer to the last request, again
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    await broker.console.resume("mail")
    leases = await broker.claim(stock.session.id, stock.requests + 1, ["mail", "default"], 10)
    assert [lease.envelope.priority for lease in leases] == [5, 0, -5, 0, 0]  # with the two that have waited for the first one's end
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * 5
    left = {record.status for record in await broker.read(stock.ids) if record is not None}
    assert left == {Status.SUCCEEDED, Status.FAILED, Status.SCHEDULED, Status.CANCELLED}
    await one_job_is_done(broker)


@made
async def test_of_twenty_at_once_one_migrates(driver: MigratingDriver, make: str) -> None:
    """None of them fails or finds half of it, whether it comes by its first verb or to migrate."""
    url = getattr(driver, make)()
    with driver.next_version():
        brokers: list[Any] = [connect(url) for _ in range(20)]
        verbs = [broker.enqueue([an_envelope()]) for broker in brokers[:10]]
        added, done = await asyncio.gather(asyncio.gather(*verbs), asyncio.gather(*(broker.migrate() for broker in brokers[10:])))

        assert all(isinstance(answer, Added) for [answer] in added)
        assert {upgrade.target for upgrade in done} == {driver.newer}
        assert sum(bool(upgrade.migrations) for upgrade in done) <= 1
        [queue] = await brokers[0].console.queues()
        assert sum(queue.counts.values()) == 10
        for broker in brokers:
            await broker.close()


# --- plans, and who migrates -----------------------------------------------------------------------------------------


@in_next_version
@made
async def test_what_is_pending_is_told_before_it_is_done(driver: MigratingDriver, make: str) -> None:
    version = driver.version if make == "of_this_version" else 0
    async with a_broker(getattr(driver, make)()) as broker:
        plan, again = await broker.pending(), await broker.pending()
        assert (plan.version, plan.target) == (again.version, again.target) == (version, driver.newer)
        assert plan.migrations[-1].description == again.migrations[-1].description == driver.description
        done = await broker.migrate()
        assert (done.version, done.migrations) == (version, plan.migrations)
        assert not (await broker.migrate()).migrations
        assert (await broker.pending()).version == driver.newer


@in_next_version
@made
async def test_who_is_told_not_to_migrate_says_what_to_do(driver: MigratingDriver, make: str) -> None:
    """Nothing is changed; it works once somebody has migrated."""
    stands = f"has version {driver.version}" if make == "of_this_version" else "does not exist"
    says = rf"{stands}, this taskflow needs version {driver.newer}, and may not migrate it \(migrate=0\): run `taskflow migrate`"
    async with a_broker(f"{getattr(driver, make)()}?migrate=0") as broker:
        plan = await broker.pending()
        with pytest.raises(BrokerRefused, match=says):
            await broker.enqueue([an_envelope()])
        assert await broker.pending() == plan

        await broker.migrate()  # what it is told is not to do so by itself

        await one_job_is_done(broker)


@pytest.mark.parametrize("driver", [SqliteDriver, PostgresDriver], indirect=True)
@pytest.mark.parametrize("options", ["", "?migrate=0"])
async def test_newer_tables_are_refused_by_all(driver: MigratingDriver, options: str) -> None:
    url = driver.of_the_next_version()
    async with a_broker(url + options) as broker:
        for ask in (lambda: broker.enqueue([an_envelope()]), broker.pending, broker.migrate, broker.sql):
            with pytest.raises(BrokerRefused, match=f"version {driver.version + 1}, (this one|but this taskflow) knows {driver.version}"):
                await ask()


# --- the script ------------------------------------------------------------------------------------------------------


@in_next_version
@pytest.mark.parametrize(("driver", "make"), [*STORES, (PsqlDriver, "nowhere")], indirect=["driver"])
async def test_an_administrator_runs_the_script(driver: MigratingDriver, make: str) -> None:
    """It does what `migrate` does. A second time it does nothing."""
    url, twin = getattr(driver, make)(), getattr(driver, make)()
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
        assert (await broker.sql()).endswith(f" is up to date (version {driver.newer})\n")
