"""Work while the broker is unavailable and comes back: what is sent, what ends, and what the worker reports."""

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
"""Long enough for steps that take far less on an idle machine. A process that takes this long has hung."""

FIRST_TRIES: Final = 10
SLOWEST: Final = 0.2
"""The first attempts of each kind may follow fast, and then one every `SLOWEST` seconds: a loop with shorter waits spins."""


UNSENT: Final = -1
"""The sender had no answer, and the job may have been added all the same: a locked store adds it when it goes on."""


class Bench:
    """One worker and its jobs. `ended` counts each job's finished runs; `release` lets the long ones end."""

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
        """The error is raised in time, while the broker is still unavailable."""
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
        """Wait until the store shows a heartbeat of the only worker since this call."""
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
