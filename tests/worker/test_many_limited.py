"""Many jobs that wait for limits cost an idle fleet nothing, and hold up no other job. TASKFLOW_LIMITED_JOBS is their number."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest

from taskflow import Concurrency, Worker, enqueue, job, limits
from taskflow.app.app import default_app
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.protocol import Broker
from taskflow.broker.redis.connections import ConnectionPool
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules
from taskflow.worker.options import WorkerOptions
from tests.support.harnesses import BROKERS, PostgresHarness, RedisHarness, StoreHarness

JOBS = int(os.environ.get("TASKFLOW_LIMITED_JOBS", "10000"))
KEYS = JOBS // 100
HOT = 0

PORTION = 10_000
SETTLED_IN = 3.0
IDLE_FOR = 10.0


class Runs:
    ended = Counter[int]()


@job(name="tests.many.work", limits=[Concurrency(1, key="key")], keep_result=0)
async def work(key: int) -> None:
    await asyncio.sleep(0.02 if key == HOT else 0)
    Runs.ended[key] += 1


@pytest.fixture
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    harness: StoreHarness = request.param(Seams(), Rules())
    opened = harness.open()
    Runs.ended.clear()
    with default_app().using(opened):
        yield opened
    await opened.close()
    harness.remove()


def on(harnesses: Iterable[type[StoreHarness]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("broker", harnesses, ids=lambda harness: harness.name, indirect=True)


async def send(keys: Sequence[int]) -> None:
    for start in range(0, len(keys), PORTION):
        await enqueue(work.bind(key) for key in keys[start : start + PORTION])


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the scripts and statements that this process sends."""
    counted = Counter[str]()

    def count(cls: type[Any], name: str) -> None:
        method = getattr(cls, name)

        def call(self: object, *args: Any, **more: Any) -> Any:
            counted[name] += 1
            return method(self, *args, **more)

        monkeypatch.setattr(cls, name, call)

    count(PostgresBroker, "_fetch")
    count(ConnectionPool, "run")
    count(ConnectionPool, "ask")
    return counted


@on([RedisHarness, PostgresHarness])
@pytest.mark.unmeasured
async def test_jobs_that_wait_at_a_full_limit_cost_an_idle_worker_nothing(commands: Counter[str], broker: Broker) -> None:
    """It sends at most one command a second, however many jobs wait."""
    await limits.set(work, HOT, 0)
    await send([HOT] * JOBS)
    async with Worker(options=WorkerOptions(concurrency=100, subscribers=())):
        await asyncio.sleep(SETTLED_IN)
        commands.clear()
        await asyncio.sleep(IDLE_FOR)
        sent = commands.copy()
    print(f"{JOBS:,} jobs: {sent.total()} commands in {IDLE_FOR:g} s")
    assert 0 < sent.total() <= IDLE_FOR
    [limit] = await broker.admin.limits()
    assert (limit.running, limit.waiting, Runs.ended.total()) == (0, 1_000, 0)


@on(BROKERS)
@pytest.mark.usefixtures("broker")
async def test_a_hot_key_does_not_hold_up_the_others() -> None:
    """Half of the jobs wait for one key, and were sent first. The jobs of the other keys end long before them."""
    began = time.monotonic()
    await send([HOT] * (JOBS // 2))
    await send([1 + number % KEYS for number in range(JOBS // 2)])
    filled = time.monotonic()
    async with Worker(options=WorkerOptions(concurrency=100, grace=0.0, subscribers=())), asyncio.timeout(60 + JOBS / 100):
        while Runs.ended.total() - Runs.ended[HOT] < JOBS // 2:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
    print(f"{JOBS:,} jobs sent in {filled - began:.1f} s, cold ones ended in {time.monotonic() - filled:.1f} s, {Runs.ended[HOT]:,} hot")
    assert Runs.ended[HOT] < JOBS // 4
