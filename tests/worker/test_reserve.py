"""The next claim is under way while a batch runs and the last one is settled. The reserve that this creates is small and given back in
time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from taskflow import JobHandle, Status, Worker, enqueue, job
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.model.envelope import Lease
from taskflow.model.ids import parse_id
from taskflow.model.record import Record
from taskflow.model.session import Beat, BeatAnswer
from taskflow.model.verdict import Settled, Settlement
from taskflow.worker import runs as runs_module
from taskflow.worker.runs import RESERVE_WINDOW, Prefetch
from tests.support.records import take_back_last
from tests.worker.scene import EventRecorder, Run, options, waits

QUICK, SLOW = RESERVE_WINDOW / 10, RESERVE_WINDOW * 2
SLOTS = 4


class Watched(MemoryBroker):
    """Records its calls. Settlements are answered while `answers` is set, claims after `claims_take` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.leased = 0
        self.settled = 0
        self.named = self.last_named = 0
        self.claims_take = 0.0
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = asyncio.Event()

    @property
    def held(self) -> int:
        return self.leased - self.settled

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        leases = await super().claim(session, request, queues, limit)
        self.leased += len(leases)
        self.said.append(f"claimed {len(leases)}")
        self.asked.set()
        await asyncio.sleep(self.claims_take)
        return leases

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        await self.answers.wait()
        self.settled += len(settlements)
        return await super().settle(settlements)

    async def beat(self, beat: Beat) -> BeatAnswer:
        self.last_named = len(beat.claims)
        self.named = max(self.named, self.last_named)
        return await super().beat(beat)

    async def records(self, handles: Sequence[JobHandle[Any]]) -> list[Record]:
        return [record for record in await self.read([parse_id(handle.id) for handle in handles]) if record is not None]

    async def number(self, status: Status) -> int:
        return sum(queue.counts[status] for queue in await self.admin.queues())


@pytest.fixture
def watched() -> Iterator[Watched]:
    broker = Watched()
    with default_app().using(broker):
        yield broker


@pytest.fixture
def a_reserve_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker assume that two jobs are about to start, whatever is measured; they may wait for any time."""
    monkeypatch.setattr(Prefetch, "reserve", lambda self, now: 2)
    monkeypatch.setattr(runs_module, "RESERVE_TTL", 3600.0)


def a_worker(slots: int = SLOTS, **more: Any) -> Worker:
    return Worker(options=options(EventRecorder(), concurrency=slots, **{"ttl": 20.0, **more}))


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.001)


async def until_running(broker: Watched, number: int) -> None:
    async with asyncio.timeout(20):
        while await broker.number(Status.RUNNING) != number:  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.001)


@job(name="tests.reserve.quick")
async def quick() -> None:
    return None


# --- what runs, and what may wait for its answer -----------------------------------------------------------


async def test_a_batch_runs_while_the_one_before_it_awaits_its_answer(watched: Watched) -> None:
    watched.answers.clear()
    await enqueue(quick.bind() for _ in range(2 * SLOTS))
    async with a_worker() as worker:
        await until(lambda: worker.tally.runs == 2 * SLOTS)
        assert watched.settled == 0
        watched.answers.set()


async def test_a_reserve_that_waits_for_an_answer_is_kept(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be handed back only after that answer, with which it can start."""
    monkeypatch.setattr(Prefetch, "reserve", lambda self, now: 2)
    monkeypatch.setattr(runs_module, "RESERVE_TTL", 0.01)
    watched.answers.clear()
    jobs = 2 * SLOTS + 2
    await enqueue(quick.bind() for _ in range(jobs))
    async with a_worker() as worker:
        await until(lambda: watched.leased == jobs)
        await asyncio.sleep(0.1)
        assert worker.tally.runs == 2 * SLOTS
        watched.answers.set()
        await until(lambda: worker.tally.runs == jobs)
    assert watched.leased == jobs


async def test_of_jobs_that_are_not_short_no_more_await_their_answer_than_there_are_slots(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prefetch, "reserve", lambda self, now: 0)
    watched.answers.clear()
    await enqueue(quick.bind() for _ in range(10 * SLOTS))
    async with a_worker() as worker:
        await until(lambda: worker.tally.runs == 2 * SLOTS)
        await asyncio.sleep(0.05)
        assert worker.tally.runs == watched.held == 2 * SLOTS
        watched.answers.set()


async def test_a_lone_job_begins_before_the_next_claim(watched: Watched) -> None:
    @job(name="tests.reserve.lone")
    async def lone() -> None:
        watched.said.append("begun")

    await lone.delay()
    async with a_worker() as worker:
        await until(lambda: worker.tally.runs == 1)
    assert watched.said[:2] == ["claimed 1", "begun"]


# --- what waits in reserve -----------------------------------------------------------------------------------


async def test_slow_jobs_are_left_to_other_workers(watched: Watched) -> None:
    handles = [await waits.delay() for _ in range(3 * SLOTS)]
    async with a_worker() as worker, a_worker():
        await until_running(watched, 2 * SLOTS)
        assert watched.leased == 2 * SLOTS
        Run.release.set()
        await until(lambda: worker.tally.runs > 0)
        for handle in handles:
            await handle.result(10)


async def test_a_job_in_reserve_is_cancelled_at_once(watched: Watched, a_reserve_of_two: None) -> None:
    handles = [await waits.delay() for _ in range(SLOTS + 2)]
    async with a_worker():
        await until_running(watched, SLOTS + 2)
        assert await handles[-1].cancel() is Status.RUNNING
        await until_running(watched, SLOTS + 1)
        Run.release.set()
        await handles[-2].result(10)
    last = (await watched.records(handles))[-1]
    assert (last.status, last.reason) == (Status.CANCELLED, "cancelled")


async def test_a_lease_that_is_lost_in_reserve_is_not_run(watched: Watched, a_reserve_of_two: None) -> None:
    handles = [await waits.delay() for _ in range(SLOTS + 1)]
    async with a_worker(ttl=0.4) as worker:
        await until_running(watched, SLOTS + 1)
        await watched.admin.pause("default")
        take_back_last(watched)
        await until(lambda: watched.named == SLOTS + 1 and watched.last_named == SLOTS)
        Run.release.set()
        await handles[0].result(10)
        await until(lambda: not watched.held - 1)
        assert worker.tally.runs == SLOTS
    assert await handles[-1].status() is Status.READY


async def test_the_reserve_is_given_back_as_soon_as_the_worker_winds_down(watched: Watched, a_reserve_of_two: None) -> None:
    """This happens while runs have their grace period, and does not count as a hand-back."""
    handles = [await waits.delay() for _ in range(SLOTS + 2)]

    async def release() -> None:
        await until_running(watched, SLOTS)
        Run.release.set()

    async with a_worker(grace=20.0):
        await until_running(watched, SLOTS + 2)
        releasing = asyncio.create_task(release())
    await releasing
    records = await watched.records(handles)
    assert [record.status for record in records] == [Status.SUCCEEDED] * SLOTS + [Status.READY] * 2
    assert [record.hand_backs for record in records] == [0] * (SLOTS + 2)


async def test_a_claim_that_is_not_answered_does_not_hold_up_the_end(watched: Watched) -> None:
    watched.claims_take = 3600.0
    async with asyncio.timeout(10):
        async with a_worker(stop_timeout=0.1):
            await watched.asked.wait()
