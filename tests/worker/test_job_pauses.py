"""A worker starts no call of a paused job, runs the queue's other jobs, and loses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskflow import JobHandle, Status, Worker, enqueue, job, operate
from taskflow.app.app import default_app
from taskflow.app.explanation import facts_of, reasons
from taskflow.model.ids import parse_id
from taskflow.worker.options import WorkerOptions
from tests.support.harnesses import BROKERS
from tests.support.waiting import until
from tests.support.world import World

ran: list[str] = []
gate: asyncio.Event


@job(name="pauses.charge")
async def charge(order: str) -> None:
    ran.append(order)
    if order == "waits":
        await gate.wait()


@job(name="pauses.mail")
async def mail(number: int) -> int:
    return number


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    global gate
    gate = asyncio.Event()
    ran.clear()
    async with World(request.param) as world:
        with default_app().using(world.broker):
            yield world


async def all_have(status: Status, handles: list[JobHandle[Any]]) -> None:
    async def have() -> bool:
        return {await handle.status() for handle in handles} == {status}

    await until(have, 20)


async def test_calls_of_a_paused_job_wait_until_it_is_resumed(world: World) -> None:
    """A run that has begun goes on to its end, and the queue's other jobs are not held up."""
    async with Worker(options=WorkerOptions(concurrency=4, ttl=2.0, subscribers=())):
        running = await charge.delay("waits")
        await until(lambda: ran == ["waits"])
        await operate.pause(job=charge)
        await asyncio.sleep(2.0)  # if it does not listen yet, its next heartbeat tells the worker of the pause
        parked = await enqueue([charge.bind(str(number)) for number in range(20)])
        others = await enqueue([mail.bind(number) for number in range(20)])
        assert [await handle.result(20) for handle in others] == list(range(20))
        await all_have(Status.SCHEDULED, parked)
        [record] = await world.broker.read([parse_id(parked[0].id)])
        assert record is not None
        [reason] = reasons(record, await facts_of(world.broker.admin, record, record.created_at))
        assert (reason.text, reason.cure) == ("job pauses.charge is paused", "`taskflow resume --job pauses.charge` ends the pause")
        gate.set()
        await running.result(20)
        assert ran == ["waits"]

        await operate.resume(job=charge)
        for handle in parked:
            await handle.result(20)
        assert sorted(ran[1:], key=int) == [str(number) for number in range(20)]
        infos = [await handle.info() for handle in parked]
        assert {info.attempt for info in infos if info is not None} == {1}


async def test_a_worker_that_starts_during_a_pause_knows_of_it(world: World) -> None:
    """The answer to its registration says so: not one call of the job is started."""
    parked = await enqueue([charge.bind(str(number)) for number in range(50)])
    other = await mail.delay(1)
    await operate.pause(job=charge)
    async with Worker(options=WorkerOptions(concurrency=10, subscribers=())):
        await other.result(20)
        await all_have(Status.SCHEDULED, parked)
        assert ran == []
    await operate.resume(job=charge)
    await all_have(Status.READY, parked)
