"""A drain beside jobs that the store cannot read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from taskflow import BrokerRefused, Every, Worker, job
from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.ids import parse_id
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.wording import UNREADABLE
from taskflow.worker.options import QueueChoice
from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.listing import listed
from tests.support.spoiling import Spoiler, spoil_one
from tests.support.world import World
from tests.worker.scene import EventRecorder, options


@job(name="tests.drain.work", keep_result=1_000.0)
async def work(n: int) -> int:
    return n


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[StoreHarness]:
    opened: StoreHarness = request.param(Seams(), Rules())
    yield opened
    opened.remove()


@pytest.fixture
async def spoiler(harness: StoreHarness) -> AsyncIterator[Spoiler]:
    spoiler = harness.spoiler()
    if spoiler is None:
        pytest.skip(f"{harness.name}: nobody but the broker can write its values")
    yield spoiler
    spoiler.close()


@pytest.fixture
async def broker(harness: StoreHarness) -> AsyncIterator[Broker]:
    opened = harness.open()
    with default_app().using(opened):
        yield opened
    await opened.close()


async def drained() -> Worker:
    async with Worker(options=options(EventRecorder(), ttl=5.0, drain_horizon=0.0)) as worker, asyncio.timeout(60):
        await worker.drained()
    return worker


async def test_a_drain_ends_though_the_store_refuses_its_schedules(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs run all the same."""

    async def refuse(*given: object) -> list[bool]:
        raise BrokerRefused("permission denied")

    registry = Registry()
    monkeypatch.setattr(default_app(), "registry", registry)
    monkeypatch.setattr(broker, "define", refuse)
    monkeypatch.setattr("taskflow.worker.worker.DECLARE_TIMEOUT", 0.2)

    @job(name="tests.drain.scheduled", schedule=Every(3_600), keep_result=1_000.0)
    async def scheduled() -> None: ...

    handle = await scheduled.delay()
    assert (await drained()).tally.failed == 0
    assert await handle.status() is Status.SUCCEEDED


async def test_a_drain_counts_a_job_that_cannot_be_read_as_a_failure(broker: Broker, spoiler: Spoiler) -> None:
    """It counts the job once: the next drain finds it, and does not count it. The neighbours run."""
    await work.delay(0)
    await drained()
    for seed in range(12):
        first, victim, last = [await work.options(priority=3, timeout=5.0).delay(n) for n in range(3)]
        spoilt = spoil_one(spoiler, parse_id(victim.id), random.Random(seed))
        worker = await drained()
        assert [await first.result(5), await last.result(5)] == [0, 2], spoilt
        bad = [record for record in await listed(broker.admin) if record.id == parse_id(victim.id)]
        if any(record.status is Status.FAILED and (error := record.last_error) and error.type == UNREADABLE for record in bad):
            assert worker.tally.failed + worker.tally.set_aside, spoilt
        again = await drained()
        assert (again.tally.failed, again.tally.set_aside) == (0, 0), spoilt


@pytest.mark.parametrize("kind", BROKERS, ids=lambda harness: harness.name)
async def test_a_drain_counts_the_poison_in_its_queues_as_failures(kind: type[StoreHarness]) -> None:
    """It counts the poison once: the next drain does not count it."""
    async with World(kind, rules=Rules(max_crashes=0)) as world:
        with default_app().using(world.broker):
            for queue in ("default", "elsewhere"):
                await work.options(queue=queue).delay(1)
            session = await world.a_session("lost")
            assert len(await world.claim(session, ["default", "elsewhere"])) == 2
            ours = options(EventRecorder(), ttl=5.0, drain_horizon=0.0, queues=QueueChoice.parse("default"))
            async with Worker(options=ours) as worker, asyncio.timeout(20):
                draining = asyncio.create_task(worker.drained())
                await world.die(session)
                await draining
            assert (worker.tally.failed, worker.tally.set_aside) == (0, 1)
            world.clock.advance(1)
            assert (await drained()).tally.set_aside == 0
