"""Functions of the application that receive the worker's events."""

from __future__ import annotations

import pytest

from taskflow import Worker, configure, job
from taskflow.events import Event, RunEnded, SessionOpened, WorkerEvent
from taskflow.worker.options import WorkerOptions


@job(name="tests.subscribers.quick", queue="quick")
async def quick() -> None:
    return None


pytestmark = pytest.mark.usefixtures("memory_broker")


async def work() -> None:
    async with Worker() as worker:
        await worker.drained()


async def test_each_worker_sends_events_to_its_applications_subscribers() -> None:
    heard, others = list[Event](), list[Event]()
    worker = Worker(options=WorkerOptions(subscribers=(others.append,)))
    configure(subscribers=[heard.append])  # before the worker starts, not before it is created
    handle = await quick.delay()
    async with worker:
        await worker.drained()
    await work()
    assert [event for event in heard if isinstance(event, WorkerEvent)][: len(others)] == others
    assert [type(event) for event in heard].count(SessionOpened) == 2
    [ended] = [event for event in heard if isinstance(event, RunEnded)]
    assert (ended.job, ended.job_id, ended.queue, ended.attempt) == (quick.name, handle.id, "quick", 1)
    opened = next(event for event in heard if isinstance(event, SessionOpened))
    assert (opened.job, opened.job_id, opened.queue, opened.attempt) == (None, None, None, None)


async def test_one_that_raises_is_logged_once_and_stops_neither_the_worker_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    heard = list[Event]()

    def broken(event: Event) -> None:
        raise RuntimeError("no metrics")

    configure(subscribers=[broken, heard.append])
    handles = [await quick.delay() for _ in range(3)]
    async with Worker():
        for handle in handles:
            await handle.result(20)
    assert sum(isinstance(event, RunEnded) for event in heard) == 3
    [record] = [record for record in caplog.records if "subscriber" in record.getMessage()]
    assert "broken" in record.getMessage()
    assert record.exc_info is not None
