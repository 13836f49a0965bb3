"""Middleware that is called for jobs that end without a run, whichever process ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from taskflow import Status, TaskflowJobs, Worker, configure, job
from taskflow.app.app import default_app
from taskflow.broker.admin import View
from taskflow.broker.memory import MemoryBroker
from taskflow.model.ids import parse_id
from taskflow.model.rules import Rules
from taskflow.worker.options import QueueChoice, WorkerOptions
from tests.support.harnesses import BROKERS
from tests.support.world import World
from tests.worker.scene import EndedRecorder


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with World(request.param, rules=Rules(max_crashes=0)) as world:
        with default_app().using(world.broker):
            yield world


@job(name="tests.unrun.waits")
async def waits(n: int = 0) -> int:
    return n


def elsewhere() -> WorkerOptions:
    """Return the options of a worker for other queues, so that the jobs here do not run."""
    return WorkerOptions(queues=QueueChoice.parse("elsewhere"), subscribers=())


async def test_each_end_without_a_run_is_heard_once(world: World) -> None:
    hearing = EndedRecorder()
    configure(middleware=[hearing])
    async with Worker(options=elsewhere()):
        lost = await waits.options(queue="lost").delay(5)
        session = await world.a_session("lost")
        assert len(await world.claim(session, ["lost"])) == 1
        cancelled, expired = await waits.delay(1), await waits.options(expires=60).delay(2)
        purged = await waits.options(queue="purged", after=10).delay(3)
        replaced = await waits.options(key="k").delay(4)
        replacement = await waits.options(key="k", on_conflict="replace").delay(6)
        await cancelled.cancel()
        await world.broker.admin.purge(View(queue="purged"))
        await world.die(session)
        await hearing.wait_for(4)
        world.clock.advance(60)
        await world.upkeep()  # as another worker calls it
        told = await hearing.wait_for(5)
        await asyncio.sleep(0.05)
    assert len(hearing.infos) == 5
    assert {told[handle.id].reason for handle in (cancelled, expired, purged)} == {"cancelled", "expired", "purged"}
    assert told[replaced.id].reason == f"replaced by {replacement.id}"
    assert (told[lost.id].status, (told[lost.id].reason or "")[:7]) == (Status.FAILED, "poison:")
    assert all(info.job == waits.name and info.ended_at is not None for info in told.values())


async def test_a_poison_job_with_a_follow_up_is_heard_of_by_the_worker_that_ends_it(world: World) -> None:
    hearing = EndedRecorder()
    configure(middleware=[hearing])
    failing = await waits.options(on_failure=waits.bind(2)).delay(1)
    session = await world.a_session("lost")
    assert len(await world.claim(session)) == 1
    await world.die(session)
    async with Worker(options=WorkerOptions(subscribers=())):
        told = await hearing.wait_for(2)
    assert told.pop(failing.id).status is Status.FAILED
    [follow_up] = told.values()
    assert follow_up.status is Status.SUCCEEDED


async def test_ends_that_the_store_has_dropped_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    hearing = EndedRecorder()
    broker = MemoryBroker(rules=Rules(max_ends=2))
    with default_app().using(broker):
        configure(middleware=[hearing])
        async with Worker(options=elsewhere()):
            handles = [await waits.delay(n) for n in range(5)]
            await broker.cancel([parse_id(handle.id) for handle in handles])
            told = await hearing.wait_for(2)
    assert told.keys() == {handle.id for handle in handles[3:]}
    assert "EndedRecorder.ended() was not called for 3 job(s): too many have ended without a run" in caplog.text


async def test_a_job_that_was_retried_before_its_end_was_read_has_not_ended() -> None:
    hearing = EndedRecorder()
    broker = MemoryBroker()
    with default_app().using(broker):
        configure(middleware=[hearing])
        async with Worker(options=elsewhere()):
            retried, other = await waits.delay(1), await waits.delay(2)
            await broker.cancel([parse_id(retried.id), parse_id(other.id)])
            await broker.admin.retry([parse_id(retried.id)])
            told = await hearing.wait_for(1)
    assert told.keys() == {other.id}


async def test_tests_hear_of_them_too(taskflow_jobs: TaskflowJobs) -> None:
    hearing = EndedRecorder()
    configure(middleware=[hearing])
    cancelled, expired, run = (
        await waits.options(after=60).delay(1),
        await waits.options(after=20, expires=10).delay(2),
        await waits.delay(3),
    )
    await cancelled.cancel()
    await taskflow_jobs.run_all()
    assert {info.id for info in hearing.infos} == {cancelled.id, run.id}
    await taskflow_jobs.advance(30)
    assert [(info.id, info.reason) for info in hearing.infos[2:]] == [(expired.id, "expired")]
