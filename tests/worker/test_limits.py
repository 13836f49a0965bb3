"""Limited jobs under workers: no more run at once than their limits allow, and all of them run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise

import msgspec
import pytest

from taskflow import Concurrency, Limit, Rate, RateLimited, Status, Worker, enqueue, job
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules
from taskflow.worker.options import QueueChoice
from tests.support.harnesses import BROKERS, StoreHarness
from tests.worker.scene import EventRecorder, options


class Runs:
    """What runs now, by tenant, and the most that ran at once."""

    now = Counter[str]()
    most = Counter[str]()
    starts = list[float]()


@job(name="tests.limits.work", limits=[Concurrency(2, key="tenant"), Limit("tests.all", Concurrency(5))])
async def work(tenant: str, n: int) -> None:
    for name in (tenant, ""):
        Runs.now[name] += 1
        Runs.most[name] = max(Runs.most[name], Runs.now[name])
    await asyncio.sleep(0)
    Runs.now[tenant] -= 1
    Runs.now[""] -= 1


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    harness: StoreHarness = request.param(Seams(), Rules())
    opened = harness.open()
    with default_app().using(opened):
        yield opened
    await opened.close()
    harness.remove()


async def test_a_drain_runs_all_within_the_limits(broker: Broker) -> None:
    """The last jobs wait at their gates while as many run as may."""
    Runs.now.clear()
    Runs.most.clear()
    handles = await enqueue(work.bind("abcd"[n % 4], n) for n in range(120))
    async with Worker(options=options(EventRecorder(), concurrency=32, drain_horizon=0.0)) as worker, asyncio.timeout(60):
        await worker.drained()
    assert Counter([await handle.status() for handle in handles]) == {Status.SUCCEEDED: 120}
    assert Runs.most[""] == 5
    assert all(Runs.most[tenant] <= 2 for tenant in "abcd")


@job(name="tests.limits.call", limits=[Rate(20, per=1.0, burst=2)])
async def call(n: int) -> None:
    Runs.starts.append(time.monotonic())
    if len(Runs.starts) == 1:
        raise RateLimited(retry_after=2.0)


async def test_a_rate_is_kept_while_runs_are_refused(broker: Broker) -> None:
    """A refused run closes the rate for all, and runs again without using up an attempt."""
    Runs.starts.clear()
    handles = await enqueue(call.bind(n) for n in range(8))
    async with Worker(options=options(EventRecorder(), concurrency=8, drain_horizon=5.0)) as worker, asyncio.timeout(60):
        await worker.drained()
    assert Counter([await handle.status() for handle in handles]) == {Status.SUCCEEDED: 8}
    infos = [await handle.info() for handle in handles]
    assert {info.attempt for info in infos if info is not None} == {1}
    assert len(Runs.starts) == 9
    assert max(later - earlier for earlier, later in pairwise(Runs.starts)) > 1.0


async def test_limits_that_the_sender_does_not_know(broker: Broker) -> None:
    """Jobs that were sent before their limits were declared, or by name, pass them when a worker gets them."""
    Runs.now.clear()
    Runs.most.clear()
    envelopes = [msgspec.structs.replace(work.bind("a", n).envelope, limits=()) for n in range(30)]
    await broker.enqueue(envelopes)
    async with Worker(options=options(EventRecorder(), concurrency=32, drain_horizon=0.0)) as worker, asyncio.timeout(60):
        await worker.drained()
    assert {record.status for record in await broker.read([each.id for each in envelopes]) if record} == {Status.SUCCEEDED}
    assert Runs.most["a"] == 2


@job(name="tests.limits.shared", limits=[Limit("tests.shared", Concurrency(1))])
async def shared() -> None:
    pass


async def test_a_queue_without_a_worker_gives_its_slot_up(broker: Broker) -> None:
    """A worker of another queue gets the slot within a few seconds, and takes the time for upkeep even if it has nothing else to do."""
    unserved = await shared.options(queue="unserved").delay()
    async with Worker(options=options(EventRecorder(), ttl=10.0, queues=QueueChoice({"served": None}))):
        served = await shared.options(queue="served").delay()
        await served.result(20)
    assert (await unserved.status()) in (Status.READY, Status.SCHEDULED)
    assert len(await broker.admin.limits()) == 1
