"""nudges: as many workers are woken as there is work for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.wakeups import Waiter
from taskflow.model.envelope import Lease
from taskflow.model.session import Session
from tests.support.verdicts import succeeded
from tests.support.world import World


async def moment(world: World) -> None:
    """Wait as long as a surplus nudge could take to arrive."""
    await asyncio.sleep(world.harness.wakes_within / 30)


async def until_prompt(waiter: Waiter) -> None:
    async with asyncio.timeout(10.0):
        while not waiter.is_prompt:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.005)


class IdleWorker:
    """A worker with its own broker. It has claimed fewer jobs than it has room for, and waits for a nudge."""

    def __init__(self, world: World, session: Session, queues: Sequence[str]) -> None:
        self._world = world
        self._session = session
        self._queues = queues
        self._requests = 0
        self._waiter: Waiter | None = None
        self._waiting: asyncio.Task[bool] | None = None
        self.broker: Broker = world.broker.sibling()

    async def claim(self, limit: int = 10) -> list[Lease]:
        self._requests += 1
        return await self.broker.claim(self._session.id, self._requests, self._queues, limit)

    async def begin(self) -> None:
        """Wait for jobs, and return when a nudge would reach the worker."""
        listed = await self._world.harness.waiting(self.broker, "mail")
        self._waiter = self.broker.listen([topics.queue(name) for name in self._queues] or [topics.ANY_QUEUE])
        self._waiting = asyncio.create_task(self._waiter.wait(60.0))
        await until_prompt(self._waiter)
        self._world.clock.advance(0.001)  # the workers arrive one after the other
        assert await self.claim() == []
        async with asyncio.timeout(10.0):
            while await self._world.harness.waiting(self.broker, "mail") <= listed:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)

    async def wait_again(self) -> None:
        assert self._waiter is not None
        self._waiting = asyncio.create_task(self._waiter.wait(60.0))
        await asyncio.sleep(0)

    async def stop_waiting(self) -> None:
        """Stop waiting, as a worker without room for jobs does."""
        assert self._waiting is not None
        self._waiting.cancel()
        await asyncio.wait([self._waiting])

    @property
    def is_nudged(self) -> bool:
        return self._waiting is not None and self._waiting.done() and not self._waiting.cancelled()

    async def end(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        await self.broker.close()


@asynccontextmanager
async def idle(world: World, number: int, queues: Sequence[str] = ("mail",)) -> AsyncIterator[list[IdleWorker]]:
    """Let this number of workers wait for jobs."""
    workers = [IdleWorker(world, await world.a_session(f"worker {n}"), queues) for n in range(number)]
    try:
        for worker in workers:
            await worker.begin()
        yield workers
    finally:
        for worker in workers:
            await worker.end()


async def nudged(world: World, workers: Sequence[IdleWorker], expected: int) -> list[IdleWorker]:
    """Return the nudged workers, once as many as expected are, plus a moment for any surplus."""
    try:
        async with asyncio.timeout(world.harness.wakes_within):
            while sum(worker.is_nudged for worker in workers) < expected:  # noqa: ASYNC110 - they are many
                await asyncio.sleep(0.005)
    except TimeoutError:
        pass
    await moment(world)
    return [worker for worker in workers if worker.is_nudged]


@pytest.mark.parametrize("queues", [["mail"], [], ["other", "mail"]], ids=["one queue", "every queue", "two queues"])
@pytest.mark.parametrize("jobs", [1, 2, 9])
async def test_nudge_few(world: World, queues: Sequence[str], jobs: int) -> None:
    """As many workers are nudged as jobs became ready, or all workers if there are fewer."""
    async with idle(world, 4, queues) as workers:
        await world.enqueue(*(world.an_envelope(queue="mail") for _ in range(jobs)))

        assert len(await nudged(world, workers, min(jobs, 4))) == min(jobs, 4)


async def test_nudge_few__again_and_again(world: World) -> None:
    """A worker that has claimed and waits again is nudged again, and no other if it is the only one."""
    async with idle(world, 1) as [worker]:
        for _ in range(3):
            await world.add(queue="mail")
            assert await nudged(world, [worker], 1) == [worker]
            [lease] = await worker.claim()
            await world.settle(succeeded(lease))
            await worker.wait_again()
            assert await nudged(world, [worker], 0) == []


async def test_nudge_few__for_another_queue(world: World) -> None:
    """No worker is nudged for jobs of a queue from which none waits to claim."""
    async with idle(world, 2) as workers:
        await world.add(queue="other")

        assert await nudged(world, workers, 0) == []


@pytest.mark.parametrize("queues", [["mail"], []], ids=["one queue", "every queue"])
async def test_nudge_next(world: World, queues: Sequence[str]) -> None:
    """A worker that fills its room and leaves ready jobs behind nudges another."""
    async with idle(world, 3, queues) as workers:
        await world.add(queue="mail")
        await nudged(world, workers, 1)  # the worker does not claim
        await world.add(queue="mail")
        second = next(worker for worker in await nudged(world, workers, 2) if worker.is_nudged)
        assert len(await second.claim(limit=1)) == 1

        assert len(await nudged(world, workers, 3)) == 3


@pytest.mark.parametrize("place", [0, 1])
async def test_nudge_full(world: World, place: int) -> None:
    """A worker that has claimed as many jobs as it has room for waits for none, and is passed over."""
    async with idle(world, 3) as workers:
        await world.add(queue="mail")
        [first] = await nudged(world, workers, 1)
        others = [worker for worker in workers if worker is not first]
        full, other = others[place], others[1 - place]
        await full.stop_waiting()
        assert len(await full.claim(limit=1)) == 1
        assert await first.claim() == []
        await first.wait_again()
        await world.add(queue="mail")
        await world.add(queue="mail")

        assert await nudged(world, [first, other], 2) == [first, other]


async def test_nudge_paused(world: World) -> None:
    """Jobs of a paused queue nudge no worker. When it is resumed, they nudge as many workers as there are jobs."""
    async with idle(world, 3) as workers:
        await world.broker.admin.pause("mail")
        await world.add(queue="mail")
        await world.add(queue="mail")
        assert await nudged(world, workers, 0) == []

        await world.broker.admin.resume("mail")
        assert len(await nudged(world, workers, 2)) == 2


async def test_ended_told(world: World) -> None:
    """The end of a job wakes those that wait for it, and no others."""
    one, other = await world.running(), await world.running()
    brokers = [world.broker.sibling(), world.broker.sibling()]
    waits = list[asyncio.Task[bool]]()
    try:
        for broker, lease in zip(brokers, [one, other], strict=True):
            waiter = broker.listen([topics.job(lease.envelope.id)])
            waits.append(asyncio.create_task(waiter.wait(60.0)))
            await until_prompt(waiter)
            await broker.read([lease.envelope.id])
        await world.settle(succeeded(one, b"\x01r"))
        assert await asyncio.wait_for(waits[0], world.harness.wakes_within)
        await moment(world)

        assert not waits[1].done()
        [record] = await brokers[0].read([one.envelope.id])
        assert record == await world.record(one)
    finally:
        for waiting in waits:
            waiting.cancel()
        for broker in brokers:
            await broker.close()
