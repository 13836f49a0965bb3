"""The chaos test of the memory broker, which lives in one process: `python -m tests.long.chaos.memory SEED SECONDS`.

Workers are cancelled, stopped and replaced, their services are cancelled, the loop is blocked, and the machine sleeps: all clocks jump."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

from taskflow import Worker
from taskflow.app.app import default_app
from taskflow.broker.memory import MemoryBroker
from taskflow.model.clock import Seams, SystemClock, to_microseconds
from taskflow.worker.options import WorkerOptions
from tests.long.chaos.jobs import ledger
from tests.long.chaos.play import census, check, drain, has_no_dead_session
from tests.long.chaos.producers import Producer, put_schedule
from tests.long.chaos.state import read_state
from tests.support.waiting import until

TTL: Final = 6.0
WORKERS: Final = 3
PRODUCERS: Final = 2

SERVICES: Final = ("Fetcher.", "Settler.", "Quarantine.", "WorkerSession.", "Runs.watch")
"""The beginnings of the names of tasks that a worker restarts."""


class SleepyClock(SystemClock):
    """The clocks of a machine that was asleep for a while."""

    def __init__(self) -> None:
        self._asleep = 0

    def wall(self) -> int:
        return super().wall() + self._asleep

    def steady(self) -> int:
        return super().steady() + self._asleep

    def sleep(self, seconds: float) -> None:
        self._asleep += to_microseconds(seconds)


class Chaos:
    """Keeps this many workers at work, and causes a fault in one of them, or in all, every half second."""

    def __init__(self, clock: SleepyClock, seed: int) -> None:
        self._clock = clock
        self._chance = random.Random(seed)
        self._leaving = [asyncio.Event() for _ in range(WORKERS)]
        faults: dict[Callable[[], Awaitable[None]], int] = {
            self.replace_worker: 3,
            self.cancel_worker: 2,
            self.cancel_service: 4,
            self.block_loop: 2,
            self.sleep: 3,
        }
        self._faults, self._weights = list(faults), list(faults.values())

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            [fault] = self._chance.choices(self._faults, self._weights)
            ledger.write("fault", note=fault.__name__)
            await fault()
            await asyncio.sleep(self._chance.uniform(0.1, 1))

    async def work(self, number: int) -> None:
        """Run one worker after another, each in a separate task, until this is cancelled."""
        while True:
            self._leaving[number] = leaving = asyncio.Event()
            worker = asyncio.create_task(self._live(leaving), name=f"worker {number}")
            try:
                await asyncio.shield(asyncio.wait([worker]))
            finally:
                leaving.set()
                await asyncio.wait([worker])
            if not worker.cancelled():
                worker.result()

    async def _live(self, leaving: asyncio.Event) -> None:
        grace = self._chance.choice((0.0, 0.1, 2.0))
        async with Worker(options=WorkerOptions(ttl=TTL, concurrency=8, grace=grace, subscribers=())):
            await leaving.wait()

    async def replace_worker(self) -> None:
        self._chance.choice(self._leaving).set()

    async def cancel_worker(self) -> None:
        self._chance.choice([task for task in asyncio.all_tasks() if task.get_name().startswith("worker ")]).cancel()

    async def cancel_service(self) -> None:
        """Act like a job that cancels all tasks but its own."""
        services = [task for task in asyncio.all_tasks() if task.get_name().startswith(SERVICES)]
        for task in self._chance.sample(services, min(len(services), self._chance.randint(1, 3))):
            task.cancel()

    async def block_loop(self) -> None:
        time.sleep(self._chance.uniform(0.01, 0.3))  # noqa: ASYNC251

    async def sleep(self) -> None:
        """Sleep for shorter or longer than a lease lives."""
        ledger.write("stopped")
        self._clock.sleep(TTL * self._chance.choice((0.1, 0.9, 1.5, 3.0)))
        ledger.write("continued")


async def main(seed: int, seconds: float) -> None:
    clock = SleepyClock()
    ledger.wall, ledger.mono = (lambda: clock.wall() / 1e6), (lambda: clock.steady() / 1e6)
    broker = MemoryBroker(seams=Seams(clock))
    with default_app().using(broker):
        await put_schedule()
        chaos = Chaos(clock, seed)
        workers = [asyncio.create_task(chaos.work(number), name=f"fleet {number}") for number in range(WORKERS)]
        async with census(broker, ledger):
            async with asyncio.TaskGroup() as group:
                group.create_task(chaos.run(seconds))
                for number in range(1, PRODUCERS + 1):
                    group.create_task(Producer(seed * 1_000 + number).produce(seconds))
            await drain(broker)
        await until(lambda: has_no_dead_session(broker, WORKERS), within=3 * TTL)
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
        state = await read_state(broker, None)
    check(ledger.read(), state, ttl=TTL, name=f"memory, CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}", folder=ledger.path.parent)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
