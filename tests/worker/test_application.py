"""A worker inside an application: its options, and how the application's lifespan runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from taskflow import ConfigurationError, JobContext, JobHandle, Status, Worker, configure, job
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.worker.options import WorkerOptions


@job(name="tests.application.state")
async def state(ctx: JobContext) -> str:
    return str(ctx.state)


@job(name="tests.application.where")
async def where(ctx: JobContext) -> str:
    return ctx.queue


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrency": "5"}, r"concurrency='5': expected an int from 1 to 100,000"),
        ({"concurrency": True}, r"concurrency=True: expected an int from 1 to"),
        ({"concurrency": 2.5}, r"concurrency=2\.5: expected an int from 1 to"),
        ({"concurrency": 0}, r"concurrency=0: expected an int from 1 to"),
        ({"grace": "25"}, r"grace='25': expected seconds, 0 or more"),
        ({"grace": None}, r"grace=None: expected seconds, 0 or more"),
        ({"queues": {"mail": 3}}, r"queues=\{'mail': 3\}: expected names, .*\[\"mail\", \"default\"\].*mail=3,default=1"),
        ({"queues": ["mail", 3]}, r"queues=\['mail', 3\]: expected names"),
        ({"queues": 5}, r"queues=5: expected names"),
        ({"queues": []}, r"queues=\[\]: .*''"),
        ({"queues": ["a b"]}, r"queues=\['a b'\]: .*'a b'"),
        ({"queues": ["a", "a"]}, r"queues=\['a', 'a'\]: queue 'a' is named twice"),
    ],
)
def test_invalid_arguments_of_a_worker_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Worker(**given)


async def test_queues_may_be_a_list(broker: Broker) -> None:
    left = await where.options(queue="left").delay()
    async with Worker(queues=["first", "second"]):
        assert await (await where.options(queue="second").delay()).result(10) == "second"
    assert await left.status() is Status.READY


async def test_a_lifespan_may_hold_a_task_group(broker: Broker) -> None:
    """The lifespan ends in the task that began it."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        began_in = asyncio.current_task()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield "with a task group"
            group.cancel_scope.cancel()
        assert asyncio.current_task() is began_in

    configure(lifespan=lifespan)
    async with Worker():
        assert await (await state.delay()).result(10) == "with a task group"


@job(name="tests.application.stops_the_loop")
async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)


def test_a_worker_whose_loop_is_stopped_winds_down_while_asyncio_cancels_all() -> None:
    """It hands back its running jobs, leaves, and waits for none."""

    async def application() -> None:
        async with Worker():
            handles.append(await stops_the_loop.delay())
            await asyncio.Event().wait()

    async def afterwards() -> tuple[Status | None, int]:
        return await handles[0].status(), len(await broker.admin.workers())

    handles: list[JobHandle[None]] = []
    broker = connect("memory://")
    with default_app().using(broker):
        began_at = time.monotonic()
        with pytest.raises(RuntimeError, match="stopped before"):
            asyncio.run(application())
        assert time.monotonic() - began_at < WorkerOptions().stop_timeout
        assert asyncio.run(afterwards()) == (Status.READY, 0)


class Odd(BaseException):
    """Derived from BaseException like SystemExit, which would end the test's own loop."""


@pytest.mark.parametrize("when", ["beginning", "end"])
@pytest.mark.parametrize("error", [ValueError("no database"), Odd("no database")], ids=["exception", "base exception"])
async def test_an_error_of_the_lifespan_reaches_the_caller_as_it_is(broker: Broker, when: str, error: BaseException) -> None:
    """The worker has left by then, or never registered."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        if when == "beginning":
            raise error
        yield
        raise error

    configure(lifespan=lifespan)
    with pytest.raises(type(error)) as raised:
        async with Worker():
            assert when == "end"
    assert raised.value is error
    assert error.__cause__ is error.__context__ is None
    assert await broker.admin.workers() == []
