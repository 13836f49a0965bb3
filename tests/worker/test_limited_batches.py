"""Batch jobs with limits, tenants or a debounce: each job keeps its own rules, whichever jobs are gathered with it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from taskflow import Batch, Concurrency, Failure, JobHandle, Rate, RateLimited, Status, Worker, enqueue, job
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules
from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.waiting import until, until_running
from tests.worker.scene import EventRecorder, options


class Doc(NamedTuple):
    tenant: str
    number: int


class Calls:
    """The documents of each call, and when it was made. Those in `refused` are refused once."""

    made: list[list[Doc]] = []
    at: list[float] = []
    refused = set[Doc]()


@pytest.fixture(autouse=True)
def _fresh_calls() -> None:
    Calls.made, Calls.at, Calls.refused = [], [], set()


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    harness: StoreHarness = request.param(Seams(), Rules())
    opened = harness.open()
    with default_app().using(opened):
        yield opened
    await opened.close()
    harness.remove()


def record(docs: list[Doc]) -> list[int | Failure]:
    Calls.made.append(docs)
    Calls.at.append(time.monotonic())
    refused, Calls.refused = Calls.refused, set()
    return [Failure(RateLimited(retry_after=1.0)) if doc in refused else doc.number for doc in docs]


SOON = Batch(size=4, within=0.2)


@job(name="limited_batches.three", batch=Batch(size=3, within=30.0), limits=[Concurrency(3)])
async def three(docs: list[Doc]) -> list[int | Failure]:
    return record(docs)


@job(name="limited_batches.fewer", batch=SOON, limits=[Concurrency(2)])
async def fewer(docs: list[Doc]) -> list[int | Failure]:
    return record(docs)


@job(name="limited_batches.each", batch=SOON, limits=[Concurrency(1, key="docs.tenant")])
async def each(docs: list[Doc]) -> list[int | Failure]:
    return record(docs)


@job(name="limited_batches.rated", batch=SOON, limits=[Rate(10, per=1.0, burst=4, key="docs.tenant")])
async def rated(docs: list[Doc]) -> list[int | Failure]:
    return record(docs)


@job(name="limited_batches.fair", batch=SOON, fair="docs.tenant")
async def fair(docs: list[Doc]) -> list[int | Failure]:
    return record(docs)


@job(name="limited_batches.saved", batch=Batch(size=3, within=30.0), key="{docs.tenant}")
async def saved(docs: list[Doc]) -> list[int | Failure]:
    return record(docs)


def a_worker(concurrency: int = 1) -> Worker:
    return Worker(options=options(EventRecorder(), ttl=10.0, concurrency=concurrency))


async def results(handles: list[JobHandle[int]]) -> list[int]:
    return [await handle.result(30) for handle in handles]


@pytest.mark.parametrize("concurrency", [1, 20])
async def test_a_limit_as_large_as_the_batch_fills_each_call(broker: Broker, concurrency: int) -> None:
    """The end of a call hands its slots to the jobs of the next one, however many slots the worker has."""
    handles = await enqueue(three.bind(Doc("a", n)) for n in range(12))
    async with a_worker(concurrency):
        assert await results(handles) == list(range(12))
    assert Calls.made == [[Doc("a", first + n) for n in range(3)] for first in range(0, 12, 3)]


async def test_gathered_jobs_hold_the_slots_of_their_limit(broker: Broker) -> None:
    """No call has more jobs than the limit lets run at once. Further jobs wait at the limit, and none of them in the worker."""
    handles = await enqueue(fewer.bind(Doc("a", n)) for n in range(6))
    async with a_worker():
        await until_running(handles[1])
        [found] = await broker.admin.limits()
        assert (found.running, found.waiting) == (2, 4)
        assert await results(handles) == list(range(6))
    assert [len(call) for call in Calls.made] == [2, 2, 2]
    assert await broker.admin.limits() == []


async def test_a_call_has_one_job_of_each_limited_tenant(broker: Broker) -> None:
    handles = await enqueue(each.bind(Doc(tenant, n)) for n in range(2) for tenant in "aabbc")
    async with a_worker(4):
        await results(handles)
    assert max(count for call in Calls.made for count in Counter(doc.tenant for doc in call).values()) == 1
    assert sum(map(len, Calls.made)) == 10
    assert len(Calls.made[0]) == 3


async def test_a_cancelled_job_hands_its_slot_on_while_others_are_gathered(broker: Broker) -> None:
    """The batch gets the job that was waiting for the slot."""
    handles = await enqueue(three.bind(Doc("a", n)) for n in range(2))
    async with a_worker():
        await until_running(handles[1])
        await handles[0].cancel()
        await until(lambda: _has(handles[0], Status.CANCELLED))
        handles += await enqueue(three.bind(Doc("a", n)) for n in range(2, 5))
        assert await results(handles[1:4]) == [1, 2, 3]
        await handles[4].cancel()
    assert Calls.made[0] == [Doc("a", 1), Doc("a", 2), Doc("a", 3)]


async def _has(handle: JobHandle[int], status: Status) -> bool:
    return await handle.status() is status


async def test_a_rate_counts_each_gathered_job(broker: Broker) -> None:
    """Calls get as many jobs as the rate lets start. A failure with RateLimited closes the rate of its job's key alone."""
    Calls.refused = {Doc("a", 0)}
    handles = await enqueue(rated.bind(Doc(tenant, n)) for n in range(8) for tenant in "ab")
    async with a_worker(4):
        assert await results(handles) == [n for n in range(8) for _ in "ab"]
    started = [(doc.tenant, at) for call, at in zip(Calls.made, Calls.at, strict=True) for doc in call]
    starts = {tenant: [at for of, at in started if of == tenant] for tenant in "ab"}
    assert (len(starts["a"]), len(starts["b"])) == (9, 8)
    assert starts["a"][-1] - starts["a"][0] >= 1.0
    assert starts["b"][-1] < starts["a"][-1]
    infos = [await handle.info() for handle in handles]
    assert {info.attempt for info in infos if info is not None} == {1}


async def test_tenants_take_turns_within_a_call(broker: Broker) -> None:
    handles = await enqueue(fair.bind(Doc(tenant, n)) for tenant, number in (("a", 10), ("b", 2)) for n in range(number))
    async with a_worker():
        await results(handles)
    assert [Counter(doc.tenant for doc in call) for call in Calls.made] == [Counter(a=2, b=2), Counter(a=4), Counter(a=4)]


async def test_a_debounced_job_is_gathered_with_its_last_argument(broker: Broker) -> None:
    """A call that comes while the job is gathered waits behind it, and is passed to a later call."""
    first = [await saved.options(debounce=0.2).delay(Doc("a", n)) for n in range(3)]
    async with a_worker():
        await until_running(first[2])
        later = [await saved.options(debounce=0.1).delay(Doc("a", n)) for n in (3, 4)]
        others = await enqueue(saved.bind(Doc(tenant, 0)) for tenant in "bc")
        assert await results([*first, *others]) == [2, 2, 2, 0, 0]
        others = await enqueue(saved.bind(Doc(tenant, 1)) for tenant in "bc")
        assert await results([*later, *others]) == [4, 4, 1, 1]
    assert [sorted(call) for call in Calls.made] == [[("a", 2), ("b", 0), ("c", 0)], [("a", 4), ("b", 1), ("c", 1)]]
