"""Batch jobs: one call for many jobs, each of which has an outcome, by the rules of a job that runs alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from taskflow import (
    Backoff,
    Batch,
    Discard,
    Failure,
    JobCancelled,
    JobFailed,
    JobHandle,
    Snooze,
    Status,
    TaskflowJobs,
    Worker,
    current_job,
    depends,
    enqueue,
    job,
    operate,
)
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules
from taskflow.worker.events import RunEnded
from taskflow.worker.options import QueueChoice, WorkerOptions
from tests.support.harnesses import BROKERS, StoreHarness
from tests.support.waiting import until, until_running
from tests.worker.scene import EventRecorder


@dataclass
class Doc:
    number: int
    says: str = ""


class Calls:
    """The arguments of the functions' calls, and what the calls wait for."""

    made: list[list[Any]] = []
    release = asyncio.Event()
    release_thread = threading.Event()
    raises: BaseException | None = None
    returns: Any = None


@pytest.fixture(autouse=True)
def _fresh_calls() -> None:
    Calls.made, Calls.release, Calls.release_thread = [], asyncio.Event(), threading.Event()
    Calls.raises = Calls.returns = None


AT_ONCE = Backoff(base=0.0)
SOON = Batch(size=10, within=0.2)


@job(name="batches.index", batch=SOON, max_attempts=3, retry=AT_ONCE)
async def index(docs: list[Doc]) -> list[int | Failure]:
    Calls.made.append([doc.number for doc in docs])
    if Calls.raises is not None:
        raise Calls.raises
    if Calls.returns is not None:
        return Calls.returns  # type: ignore[no-any-return]
    return [Failure(doc.says) if doc.says else 10 * doc.number for doc in docs]


@job(name="batches.double", batch=Batch(size=10, within=3.0))
async def double(numbers: list[int]) -> list[int]:
    Calls.made.append(numbers)
    return [2 * number for number in numbers]


@job(name="batches.patient", batch=Batch(size=3, within=60.0), max_attempts=1)
async def patient(numbers: list[int]) -> list[int]:
    Calls.made.append(numbers)
    await Calls.release.wait()
    return numbers


@job(name="batches.stubborn", batch=Batch(size=2, within=60.0))
async def stubborn(numbers: list[int]) -> list[int]:
    Calls.made.append(numbers)
    try:
        await Calls.release.wait()
    finally:
        await asyncio.sleep(0.2)
        Calls.made.append(["end"])
    return numbers


@job(name="batches.plain", batch=SOON)
def plain(numbers: list[int]) -> list[str]:
    assert threading.current_thread() is not threading.main_thread()
    Calls.made.append(numbers)
    Calls.release_thread.wait(10)
    return [str(number) for number in numbers]


async def a_session() -> AsyncIterator[str]:
    Calls.made.append(["opened"])
    yield "session"
    Calls.made.append(["closed"])


@job(name="batches.made", batch=SOON)
async def with_dependency(numbers: list[int], session: str = depends(a_session)) -> list[str]:
    return [f"{session} {number} {len(numbers)} {current_job(None) and current_job().job_name}" for number in numbers]


def a_worker(concurrency: int = 4, **more: Any) -> Worker:
    return Worker(options=WorkerOptions(**{"concurrency": concurrency, "subscribers": (), "grace": 5.0, **more}))


@pytest.fixture(params=BROKERS, ids=lambda harness: harness.name)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    harness: StoreHarness = request.param(Seams(), Rules())
    opened = harness.open()
    with default_app().using(opened):
        yield opened
    await opened.close()
    harness.remove()


async def results(handles: list[JobHandle[Any]]) -> list[Any]:
    return [await handle.result(20) for handle in handles]


@pytest.mark.parametrize("concurrency", [1, 4, 50])
async def test_batch_gathers(broker: Broker, concurrency: int) -> None:
    """Calls are as large as they may be, however few slots there are. Each job has its result."""
    handles = await enqueue(double.bind(number) for number in range(25))
    async with a_worker(concurrency):
        assert await results(handles) == [2 * number for number in range(25)]
    assert sorted(number for call in Calls.made for number in call) == list(range(25))
    assert [len(call) for call in Calls.made] == [10, 10, 5]


async def test_a_call_is_made_with_the_gathered_jobs_after_a_while(broker: Broker) -> None:
    async with a_worker():
        began = time.monotonic()
        assert await (await index.delay(Doc(1))).result(10) == 10
        assert time.monotonic() - began >= 0.2
    assert Calls.made == [[1]]


async def test_others_have_the_other_slots(broker: Broker) -> None:
    """A gathering batch occupies one slot, and so does a running one."""
    gathered = await enqueue(patient.bind(number) for number in range(5))
    async with a_worker(3):
        await until(lambda: Calls.made)
        others = await enqueue(with_dependency.bind(number) for number in range(3))
        assert await results(others) == [f"session {number} 3 batches.made" for number in range(3)]
        assert Calls.made == [[0, 1, 2], ["opened"], ["closed"]]
        Calls.release.set()
        assert await results(gathered[:3]) == [0, 1, 2]
    assert await results(gathered) == [0, 1, 2, 3, 4]


async def test_workers_are_shown_with_one_busy_slot_for_a_batch(broker: Broker) -> None:
    """This holds while the batch is gathering, and during its call."""
    handles = await enqueue(patient.bind(number) for number in range(2))
    async with a_worker():
        await until(lambda: _has_slots(running=2, busy=1))
        handles.append(await patient.delay(2))
        await until(lambda: Calls.made)
        await until(lambda: _has_slots(running=3, busy=1))
        Calls.release.set()
        await results(handles)
        await until(lambda: _has_slots(running=0, busy=0))
        await until(lambda: _has_surplus(broker, 0))
        handle = await plain.delay(1)
        await until(lambda: _has_slots(running=1, busy=1))
        Calls.release_thread.set()
        await handle.result(10)


async def _has_slots(*, running: int, busy: int) -> bool:
    [worker] = await operate.workers()
    return (worker.running, worker.busy) == (running, busy)


async def _has_surplus(broker: Broker, surplus: int) -> bool:
    [record] = await broker.admin.workers()
    return record.session.surplus == surplus


async def test_a_failure_in_the_list_fails_its_job_alone(broker: Broker) -> None:
    """The job is retried by its own rules, with its own attempts."""
    handles = await enqueue(index.bind(Doc(number, "no" if number == 1 else "")) for number in range(3))
    async with a_worker():
        assert [await handles[number].result(20) for number in (0, 2)] == [0, 20]
        with pytest.raises(JobFailed, match="RuntimeError: no"):
            await handles[1].result(20)
    info = await handles[1].info()
    assert info is not None
    assert [error.attempt for error in info.errors] == [1, 2, 3]
    assert sorted(Calls.made) == [[0, 1, 2], [1], [1]]


@pytest.mark.parametrize(
    ("error", "status", "calls"),
    [(OSError("away"), Status.FAILED, 3), (Discard("why"), Status.FAILED, 1), (Snooze(after=60), Status.SCHEDULED, 1)],
)
async def test_an_error_of_the_call_is_that_of_all_its_jobs(broker: Broker, error: BaseException, status: Status, calls: int) -> None:
    Calls.raises = error
    handles = await enqueue(index.bind(Doc(number)) for number in range(10))
    async with a_worker():
        await until(lambda: _have(status, handles), 20)
    assert len(Calls.made) == calls


async def _have(status: Status, handles: list[JobHandle[Any]]) -> bool:
    return {await handle.status() for handle in handles} == {status}


@pytest.mark.parametrize(("returned", "says"), [([1], "returned 1 elements"), (7, "returned int"), ({1: 2, 3: 4}, "returned dict")])
async def test_a_wrong_list_is_an_error_that_is_not_retried(broker: Broker, returned: Any, says: str) -> None:
    Calls.returns = returned
    handles = await enqueue(index.bind(Doc(number)) for number in range(2))
    async with a_worker():
        for handle in handles:
            with pytest.raises(JobFailed, match=f"WrongBatchResult: batches.index {says}"):
                await handle.result(20)
    assert len(Calls.made) == 1


async def test_a_plain_function_runs_in_a_thread(broker: Broker) -> None:
    Calls.release_thread.set()
    handles = await enqueue(plain.bind(number) for number in range(10))
    async with a_worker():
        assert await results(handles) == [str(number) for number in range(10)]
    assert Calls.made == [list(range(10))]


async def test_a_job_that_is_cancelled_while_it_is_gathered_is_not_passed(broker: Broker) -> None:
    first, second = await enqueue([patient.bind(1), patient.bind(2)])
    async with a_worker():
        await until_running(second)
        await first.cancel()
        with pytest.raises(JobCancelled):
            await first.result(10)
        Calls.release.set()
        handles = [second, await patient.delay(3), await patient.delay(4)]
        assert await results(handles) == [2, 3, 4]
    assert Calls.made == [[2, 3, 4]]


async def test_a_job_that_is_cancelled_during_the_call_ends_cancelled_with_it(broker: Broker) -> None:
    """The call goes on for the other jobs. The job does not end before the call, which may still be working on it."""
    handles = await enqueue(patient.bind(number) for number in range(3))
    async with a_worker():
        await until(lambda: Calls.made)
        await handles[1].cancel()
        await asyncio.sleep(0.3)
        assert await handles[1].status() is Status.RUNNING
        Calls.release.set()
        assert [await handles[number].result(10) for number in (0, 2)] == [0, 2]
        with pytest.raises(JobCancelled):
            await handles[1].result(10)


async def test_the_call_is_cancelled_with_the_last_of_its_jobs(broker: Broker) -> None:
    """The runs end when the call has ended."""
    handles = await enqueue(stubborn.bind(number) for number in range(2))
    async with a_worker():
        await until(lambda: Calls.made)
        for handle in handles:
            await handle.cancel()
        for handle in handles:
            with pytest.raises(JobCancelled):
                await handle.result(10)
            assert Calls.made[-1] == ["end"]


async def test_a_time_limit_begins_with_the_call(broker: Broker) -> None:
    """Each job has its own limit. The last one stops the call."""
    handles = [await patient.options(timeout=timeout).delay(number) for number, timeout in enumerate((0.2, 0.4))]
    async with a_worker():
        await asyncio.sleep(0.6)
        assert Calls.made == []
        handles.append(await patient.options(timeout=0.1).delay(2))
        for handle in handles:
            with pytest.raises(JobFailed, match="ran longer than its timeout"):
                await handle.result(10)
            info = await handle.info()
            assert info is not None
            assert info.ended_at is not None
            assert info.started_at is not None
            assert 0.3 < (info.ended_at - info.started_at).total_seconds() < 5


async def test_a_time_limit_of_a_plain_function_leaves_its_slot_taken(broker: Broker) -> None:
    """As with a function that runs alone, its thread cannot be stopped, and the jobs end with it."""
    handles = [await plain.options(timeout=0.1, max_attempts=1).delay(number) for number in range(2)]
    async with a_worker():
        await until(lambda: Calls.made)
        await asyncio.sleep(0.3)
        assert {await handle.status() for handle in handles} == {Status.RUNNING}
        Calls.release_thread.set()
        for handle in handles:
            with pytest.raises(JobFailed, match="ran longer than its timeout"):
                await handle.result(10)


async def test_a_job_that_expired_while_its_batch_gathered_is_left_out(broker: Broker) -> None:
    expiring = await patient.options(expires=0.3).delay(1)
    async with a_worker():
        await until_running(expiring)
        await asyncio.sleep(0.5)
        Calls.release.set()
        handles = [await patient.delay(2), await patient.delay(3)]
        assert await results(handles) == [2, 3]
    assert Calls.made == [[2, 3]]


async def test_a_worker_that_finishes_runs_its_gathered_jobs(broker: Broker) -> None:
    """It runs them at once, not when the first one has waited long enough."""
    handles = await enqueue(patient.bind(number) for number in range(2))
    Calls.release.set()
    async with a_worker():
        await until_running(handles[1])
        await asyncio.sleep(0.1)
        assert Calls.made == []
    assert Calls.made == [[0, 1]]
    assert {await handle.status() for handle in handles} == {Status.SUCCEEDED}


async def test_a_batch_cut_short_by_the_grace_period_is_handed_back(broker: Broker) -> None:
    handles = await enqueue(patient.bind(number) for number in range(3))
    async with a_worker(grace=0.2):
        await until(lambda: Calls.made)
    infos = [await handle.info() for handle in handles]
    assert {(info.status, info.attempt) for info in infos if info is not None} == {(Status.READY, 1)}
    Calls.release.set()
    async with a_worker():
        assert await results(handles) == [0, 1, 2]


async def test_leases_of_gathered_jobs_are_kept(broker: Broker) -> None:
    """They are kept beyond the ttl: no other worker claims the jobs."""
    handles = await enqueue(patient.bind(number) for number in range(2))
    async with a_worker(ttl=0.4), a_worker(ttl=0.4, queues=QueueChoice.parse("other")):
        await asyncio.sleep(1.5)
        Calls.release.set()
        handles.append(await patient.delay(2))
        assert await results(handles) == [0, 1, 2]
    assert Calls.made == [[0, 1, 2]]


async def test_the_time_of_a_run_is_that_of_the_call(broker: Broker) -> None:
    heard = EventRecorder()
    handle = await index.delay(Doc(1))
    async with a_worker(subscribers=(heard,)):
        await handle.result(10)
    assert heard.of(RunEnded)[0].ran_for < 0.15


async def test_bad_arguments_fail_their_job_alone(broker: Broker) -> None:
    handles = await enqueue(index.bind(Doc(number)) for number in range(2))
    foreign = await default_app_send("batches.index", docs={"number": "x"})
    async with a_worker():
        assert await results(handles) == [0, 10]
        await until(lambda: _have(Status.FAILED, [foreign]), 10)


async def default_app_send(name: str, **arguments: Any) -> JobHandle[Any]:
    from taskflow.app.job import NamedJob

    named = NamedJob(default_app(), name)
    named._declared = lambda: None  # type: ignore[method-assign]
    return await named.delay(**arguments)


# --- without a worker -------------------------------------------------------------------------------------------------


async def test_a_test_runs_batches_at_once(taskflow_jobs: TaskflowJobs) -> None:
    handles = await enqueue(index.bind(Doc(number)) for number in range(25))
    assert await taskflow_jobs.run_all() == 25
    assert [len(call) for call in Calls.made] == [10, 10, 5]
    assert [await handle.result(0) for handle in handles] == [10 * number for number in range(25)]
    with taskflow_jobs.inline():
        handle = await index.delay(Doc(3))
        assert await handle.result(0) == 30
    Calls.release_thread.set()
    with taskflow_jobs.inline():
        assert await (await plain.delay(3)).result(0) == "3"


async def test_a_direct_call_passes_one_job() -> None:
    assert await index(Doc(4)) == 40
    with pytest.raises(RuntimeError, match="no"):
        await index(Doc(4, "no"))
    Calls.release_thread.set()
    assert await asyncio.to_thread(plain, 1) == "1"
    assert await with_dependency(1) == "session 1 1 None"
