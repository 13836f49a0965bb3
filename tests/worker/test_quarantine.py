"""Jobs that ran beside a crash are tried apart from the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from taskflow import Batch, JobCancelled, JobFailed, JobHandle, Status, Worker, enqueue, job
from taskflow.app.app import default_app
from taskflow.app.events import Events
from taskflow.broker.admin import View
from taskflow.broker.memory import MemoryBroker
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.ids import IdFactory, parse_id
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.worker import runs as runs_module
from taskflow.worker.events import QuarantineStarted, SessionOpened
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.options import QueueChoice
from taskflow.worker.runs import LAST, TRIALS, Quarantine, Runs, Trial
from tests.support.listing import listed
from tests.support.records import set_crashes
from tests.support.waiting import until, until_running
from tests.worker.scene import EventRecorder, FaultyBroker, Run as Gate, a_faulty_broker, options, waits

new_id = IdFactory()

Run = Callable[[], Awaitable[None]]


class Stage:
    """Runs as the worker has them. A job that is given back is claimed again once there is room, as it would be from a store.

    `begun` lists the crashes of the jobs that began, in turn; `beside`, for each, how many other leases were held then and were not on
    trial with it."""

    def __init__(self, run: Run) -> None:
        self.lease_table = LeaseTable()
        self.under_way: dict[asyncio.Task[None], HeldLease] = {}
        self.begun: list[int] = []
        self.beside: list[int] = []
        self.store: list[int] = []
        self.quarantine = Quarantine(self.lease_table, cast(Runs, self), Events())
        self._run = run
        self._number = 0

    def lease(self, crashes: int) -> Lease:
        self._number += 1
        claim = ClaimId(bytes(16), 1, self._number)
        return Lease(envelope=Envelope(id=new_id(), job="work", payload=b"\x01"), epoch=1, claim=claim, created_at=0, crashes=crashes)

    def begin(self, holding: HeldLease) -> asyncio.Task[None]:
        self.begun.append(holding.lease.crashes)
        self.beside.append(len(self.lease_table))
        task = asyncio.create_task(self._whole(holding))
        self.under_way[task] = holding
        task.add_done_callback(self.under_way.pop)
        return task

    async def _whole(self, holding: HeldLease) -> None:
        await self._run()
        self.lease_table.remove([holding.lease.claim])

    def give_back(self, holding: HeldLease) -> None:
        self.store.append(holding.lease.crashes)
        asyncio.get_running_loop().call_later(0.001, self.lease_table.remove, [holding.lease.claim])

    def set_gathering(self, gathers: bool) -> None:
        self.gathers = gathers

    async def until_done(self) -> None:
        async with asyncio.timeout(20):
            while not self.lease_table.is_open or self.store:
                await self.lease_table.wait_for_change(0.1)
                if self.lease_table.is_open:
                    claimed, self.store = self.store, []
                    for crashes in claimed:
                        self.quarantine.add(self.lease(crashes), 0.0)


@asynccontextmanager
async def a_stage(crashes: Sequence[int], run: Run = lambda: asyncio.sleep(0.001)) -> AsyncIterator[Stage]:
    stage = Stage(run)
    for number in crashes:
        stage.quarantine.add(stage.lease(number), 0.0)
    trying = asyncio.create_task(stage.quarantine.run())
    yield stage
    trying.cancel()
    for task in stage.under_way:
        task.cancel()
    await asyncio.gather(trying, *stage.under_way, return_exceptions=True)


async def test_the_least_suspicious_come_first_and_the_worst_alone() -> None:
    """While a worker tries a job with several crashes it has no other lease: the job's crash would count for it too."""
    async with a_stage([3, 1, 2, 1, 2]) as stage:
        await stage.until_done()
    assert stage.begun == [1, 1, 2, 2, 3]
    assert stage.beside == [2, 2, 1, 1, 1]


async def test_neighbours_are_tried_ten_at_a_time() -> None:
    async with a_stage([1] * 25) as stage:
        await stage.until_done()
    assert stage.beside == [10] * 20 + [5] * 5


async def test_runs_that_began_before_are_waited_for() -> None:
    async with a_stage([]) as stage:
        stage.begin(stage.lease_table.add(stage.lease(0), 0.0))
        stage.quarantine.add(stage.lease(1), 0.0)
        await stage.until_done()
    assert stage.beside == [1, 1]


async def test_a_long_suspect_holds_up_other_jobs_only_for_its_probation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runs_module.TRIALS, 2, Trial(1, 0.02, 0.02))
    async with a_stage([2, 2, 2], lambda: asyncio.sleep(3600)) as stage:
        await stage.until_done()
        assert stage.begun == [2, 2, 2]


async def test_the_more_is_at_stake_the_longer_it_is_alone() -> None:
    """A job that the next crash would make poison is alone for as long as its run usually takes."""
    trials = [TRIALS[1], TRIALS[2], LAST]
    assert trials == sorted(trials, key=lambda trial: trial.probation) == sorted(trials, key=lambda trial: trial.until_alone)
    released = asyncio.Event()

    async def wait() -> None:
        await released.wait()

    async with a_stage([3, 3], wait) as stage:
        await asyncio.sleep(2 * TRIALS[1].probation)
        assert (stage.begun, stage.lease_table.is_open) == ([3], False)
        released.set()
        await stage.until_done()
    assert (stage.begun, stage.beside) == ([3, 3], [1, 1])


async def test_one_that_is_lost_meanwhile_is_not_begun() -> None:
    stage = Stage(lambda: asyncio.sleep(0))
    lease = stage.lease(1)
    stage.quarantine.add(lease, 0.0)
    stage.lease_table.remove([lease.claim])
    trying = asyncio.create_task(stage.quarantine.run())
    await stage.until_done()
    trying.cancel()
    assert stage.begun == []


# --- those that are chosen, and wait to be alone ---------------------------------------------------------------


@asynccontextmanager
async def a_suspect_beside_a_run(
    expires: float | None = None, **more: Any
) -> AsyncIterator[tuple[FaultyBroker, Worker, EventRecorder, JobHandle[str]]]:
    """The suspect is chosen, and waits for the run to end."""
    heard = EventRecorder()
    async with a_faulty_broker() as broker:
        before = await waits.delay()
        worker = Worker(options=options(heard, **more))
        async with worker:
            await Gate.started.wait()
            await broker.admin.pause("default")
            suspect = await waits.options(expires=expires).delay()
            set_crashes(broker, parse_id(suspect.id), 1)
            Gate.started.clear()
            await broker.admin.resume("default")
            await until_running(suspect)
            await asyncio.sleep(0.01)
            yield broker, worker, heard, suspect
        assert await before.status() is not Status.FAILED


async def test_a_suspect_that_waits_to_be_alone_goes_back_uncounted_as_soon_as_the_worker_winds_down() -> None:
    async with a_suspect_beside_a_run(grace=3600.0, ttl=20.0) as (broker, worker, _, suspect):
        ending = asyncio.create_task(_end(worker, suspect))
    assert await ending is Status.READY
    [record] = await broker.records(suspect)
    assert (record.hand_backs, record.crashes) == (0, 1)


async def _end(worker: Worker, suspect: JobHandle[str]) -> Status | None:
    """Return the suspect's status while the other run has its grace period."""
    try:
        async with asyncio.timeout(10):
            while (status := await suspect.status()) is Status.RUNNING:  # noqa: ASYNC110  # no event tells it
                await asyncio.sleep(0.01)
        return status
    finally:
        worker.end_grace_period()


async def test_a_suspect_that_waits_to_be_alone_when_its_session_is_lost_is_not_held_for_ever() -> None:
    """The old session ends and leaves, which costs the suspect no crash."""
    async with a_suspect_beside_a_run(ttl=20.0) as (broker, worker, heard, suspect):
        worker._sessions.record_silence()
        await heard.wait_for(SessionOpened, times=2)
        await until(lambda: not worker._sessions.past)
        [record] = await broker.records(suspect)
        assert record.crashes == 1
        Gate.release.set()
        assert await suspect.result(10) == "epoch 2"


async def test_a_suspect_that_is_cancelled_before_its_turn_is_not_run() -> None:
    """Not even its first step runs, since that may have killed its worker."""
    async with a_suspect_beside_a_run(ttl=20.0) as (_, _, _, suspect):
        assert await suspect.cancel() is Status.RUNNING
        with pytest.raises(JobCancelled):
            await suspect.result(10)
        assert not Gate.started.is_set()
        Gate.release.set()


async def test_a_poison_job_that_waits_for_its_follow_up_is_no_suspect() -> None:
    """It does not run any more, so no job has to wait for it."""
    broker, heard = MemoryBroker(rules=Rules(max_crashes=0)), EventRecorder()
    with default_app().using(broker):
        follow_up = waits.options(queue="another").bind()
        handle = await waits.options(on_failure=follow_up).delay()
        session = Session(id=bytes(16), name="lost")
        await broker.register(session)
        assert len(await broker.claim(session.id, 1, (), 10)) == 1
        await broker.beat(Beat.of_death(session.id, "SIGSEGV"))
        async with asyncio.timeout(20), Worker(options=options(heard, queues=QueueChoice.parse("default"))):
            with pytest.raises(JobFailed, match="poison: its worker was lost"):
                await handle.result()
        assert not any(isinstance(event, QuarantineStarted) for event in heard.events)
        [sent] = await listed(broker.admin, View(queue="another"))
        assert sent.status is Status.READY


# --- batches ------------------------------------------------------------------------------------------------------


class Calls:
    made: list[list[int]] = []


@job(name="tests.quarantine.gathered", batch=Batch(size=20, within=3600.0))
async def gathered(numbers: list[int]) -> list[int]:
    Calls.made.append(numbers)
    return numbers


@pytest.mark.parametrize(("crashes", "sizes"), [(1, [10, 2]), (2, [1] * 12)])
async def test_suspects_are_not_gathered_with_others(crashes: int, sizes: list[int]) -> None:
    """Otherwise, a job that kills its worker would make all jobs of its batch poison. A batch that was gathering is called before."""
    Calls.made.clear()
    async with a_faulty_broker() as broker, asyncio.timeout(30), Worker(options=options(EventRecorder(), concurrency=20, ttl=20.0)):
        before = await enqueue(gathered.bind(100 + number) for number in range(2))
        await until_running(before[1])
        await broker.admin.pause("default")
        suspects = await enqueue(gathered.bind(number) for number in range(12))
        for suspect in suspects:
            set_crashes(broker, parse_id(suspect.id), crashes)
        await broker.admin.resume("default")
        assert [await handle.result() for handle in (*before, *suspects)] == [100, 101, *range(12)]
        assert Calls.made[0] == [100, 101]
        assert [len(call) for call in Calls.made[1:]] == sizes
        after = await enqueue(gathered.bind(number) for number in range(20))
        assert [await handle.result() for handle in after] == list(range(20))
        assert len(Calls.made[-1]) == 20
