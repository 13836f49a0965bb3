"""Work while the broker goes away and comes back: what is sent, what has ended, what the worker says of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import taskflow
from taskflow import BrokerUnavailable, EnqueueFailed, Worker
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.url import connect
from taskflow.worker.events import BrokerCallFailed, VerdictIgnored
from taskflow.worker.options import WorkerOptions
from tests.support.outages import Outage
from tests.support.waiting import until

TIMEOUT: Final = 60.0
"""Seconds for what takes far less on a machine that does nothing else. What takes this long has hung."""

FIRST_TRIES: Final = 10
SLOWEST: Final = 0.2
"""So many attempts of each kind may come fast, and then one in so many seconds: who waits no longer than that spins."""


UNSENT: Final = -1
"""Nobody was told that it was sent, and it may have been all the same: a store that was locked takes it when it goes on."""


class Bench:
    """One worker and its jobs. `ended` counts the runs of each job that came to their end; `release` lets the long ones end."""

    def __init__(self, outage: Outage) -> None:
        self.outage = outage
        self.ended: Counter[int] = Counter()
        self.begun: Counter[int] = Counter()
        self.events: list[Event] = []
        self.release = asyncio.Event()
        self.away_for = 0.0

        @taskflow.job(name="tests.outage.note", keep_result=3600)
        async def note(number: int, seconds: float) -> None:
            if number == UNSENT:
                return
            self.begun[number] += 1
            await (self.release.wait() if seconds == float("inf") else asyncio.sleep(seconds))
            self.ended[number] += 1

        self.note = note

    @asynccontextmanager
    async def work(self, *, ttl: float, concurrency: int = 50) -> AsyncIterator[Worker]:
        broker = connect(self.outage.url)
        options = WorkerOptions(ttl=ttl, concurrency=concurrency, grace=5.0, subscribers=(self.events.append,))
        with default_app().using(broker):
            async with Worker(options=options) as worker:
                yield worker
            await broker.close()

    async def send(self, numbers: Iterable[int], seconds: float = 0.0) -> None:
        await taskflow.enqueue(self.note.bind(number, seconds) for number in numbers)

    async def cannot_send(self) -> None:
        """It is said in time: while the broker is away still."""
        taskflow.configure(enqueue_timeout=0.5)
        try:
            await self.note.delay(UNSENT, 0.0)
        except (BrokerUnavailable, EnqueueFailed):
            return
        finally:
            taskflow.configure(enqueue_timeout=TIMEOUT)
        raise AssertionError("a job was sent to a broker that is away")

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """End the outage only after an attempt has failed: on a locked SQLite file, an attempt fails after seconds."""
        began_at, troubles = time.monotonic(), len(self.troubles)
        await asyncio.to_thread(self.outage.go_away)
        try:
            yield
            await until(lambda: len(self.troubles) > troubles)
        finally:
            await asyncio.to_thread(self.outage.come_back)
            self.away_for += time.monotonic() - began_at

    async def until_beaten(self) -> None:
        """The store says that the only worker has beaten since this was called."""
        called_at = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            while True:
                asked_at = time.monotonic()
                [worker] = await default_app().broker().admin.workers()
                if worker.seconds_since_beat < asked_at - called_at:
                    return
                await asyncio.sleep(0.05)

    def has(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.events)

    def nothing_was_in_vain(self) -> None:
        assert not self.has(VerdictIgnored), [event for event in self.events if isinstance(event, VerdictIgnored)]

    @property
    def troubles(self) -> list[BrokerCallFailed]:
        return [event for event in self.events if isinstance(event, BrokerCallFailed)]

    def has_not_spun(self) -> None:
        tries = Counter(event.operation for event in self.troubles)
        assert tries, "nothing was tried at all"
        assert max(tries.values()) <= FIRST_TRIES + self.away_for / SLOWEST, tries
