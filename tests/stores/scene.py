"""An application on a store that fails: a job that records its runs, workers for it, and a direct way to read the store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import taskflow
from taskflow import EnqueueFailed, Status, StoreFull, Worker
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.app.handle import JobHandle
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record
from taskflow.model.verdict import Settled
from taskflow.worker.events import SessionEnded
from taskflow.worker.options import WorkerOptions
from tests.stores.jobs import an_envelope, new_id, registered
from tests.support.verdicts import succeeded
from tests.support.waiting import until

TIMEOUT: Final = 60.0
"""Long enough for steps that take far less on an idle machine. A process that takes this long has hung."""

NOTE: Final = "tests.stores.note"
"""The scene's job."""


class Scene:
    """As an asynchronous context manager: inside, taskflow's clients and workers use the broker at `url`.

    `url` may lead through a proxy; `store` reads what `straight_url` names.
    """

    def __init__(self, straight_url: str, url: str | None = None) -> None:
        self.straight_url = straight_url
        self.runs: Counter[int] = Counter()
        """How often the job of each number has run."""
        self.takes = 0.0
        """Seconds that a run takes."""
        self.handles: dict[int, JobHandle[None]] = {}
        self.events: list[Event] = []
        self._broker = connect(url or straight_url)
        self._stack = ExitStack()
        self._ran = asyncio.Event()

        @taskflow.job(name=NOTE, keep_result=3600)
        async def note(number: int, padding: bytes = b"") -> None:
            if self.takes:
                await asyncio.sleep(self.takes)
            self.runs[number] += 1
            self._ran.set()

        self.note = note

    async def __aenter__(self) -> Self:
        self.store = connect(self.straight_url)
        self._stack.enter_context(default_app().using(self._broker))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._broker.close()
        await self.store.close()
        self._stack.close()

    def worker(self, *, ttl: float = 4.0) -> Worker:
        """Return a worker. By default it beats each second, and may be blocked for as long as a busy machine blocks it."""
        return Worker(options=WorkerOptions(ttl=ttl, concurrency=50, grace=5.0, subscribers=(self.events.append,)))

    @property
    def has_lost_a_session(self) -> bool:
        return any(isinstance(event, SessionEnded) for event in self.events)

    async def send(self, numbers: Iterable[int], *, padding: bytes = b"") -> None:
        numbers = list(numbers)
        handles = await taskflow.enqueue(self.note.bind(number, padding) for number in numbers)
        self.handles.update(zip(numbers, handles, strict=True))

    async def keep_sending(self, numbers: range, *, by: int = 5, ahead: int | None = None) -> None:
        """Send in batches, with a pause after each. If `ahead` is given, only that many jobs wait to be run, however slow the machine
        is."""
        for first in range(numbers.start, numbers.stop, by):
            if ahead is not None and first - ahead >= numbers.start:
                await self.until_ran([first - ahead])
            await self.send(range(first, min(first + by, numbers.stop)))
            await asyncio.sleep(0.005)

    async def fill(self, padding: bytes) -> int:
        for sent in range(len(self.handles), 10_000, 20):
            try:
                await self.send(range(sent, sent + 20), padding=padding)
            except EnqueueFailed as error:
                if not isinstance(error.__cause__, StoreFull):
                    raise
                return sent
        raise AssertionError("it does not fill up")

    async def until_ran(self, numbers: Iterable[int], *, within: float = TIMEOUT) -> None:
        missing = set(numbers)
        async with asyncio.timeout(within):
            while missing := {number for number in missing if not self.runs[number]}:
                self._ran.clear()
                await self._ran.wait()

    async def until_done(self, numbers: Iterable[int] | None = None) -> None:
        """Wait until the store shows that each of these jobs, by default all, has succeeded."""
        wanted = list(self.handles if numbers is None else numbers)

        async def have_succeeded() -> bool:
            with contextlib.suppress(BrokerUnavailable):  # the connection of this look may be cut, too
                return await self.told(wanted) == {Status.SUCCEEDED.value: len(wanted)}
            return False

        try:
            await self.until_ran(wanted)
            await until(have_succeeded, TIMEOUT)
        except TimeoutError:
            raise AssertionError(f"not done: {await self.told(wanted)}; the last events: {self.events[-5:]}") from None

    async def seconds_to_start(self, number: int) -> float:
        """Return the seconds from just before the enqueue to the job's first line."""
        began_at = time.monotonic()
        await asyncio.gather(self.send([number]), self.until_ran([number], within=10))
        return elapsed_since(began_at)

    @asynccontextmanager
    async def from_afar(self) -> AsyncIterator[None]:
        """Send calls inside through another broker than the workers', so that only a notification can reach them."""
        afar = connect(self.straight_url)
        with default_app().using(afar):
            await self.send([-1])
            await self.until_ran([-1])
            yield
        await afar.close()

    async def told(self, numbers: Iterable[int]) -> dict[str, int]:
        """Return how many of these jobs the store reports in which state."""
        return dict(Counter("gone" if record is None else record.status.value for record in await self.records(numbers)))

    async def records(self, numbers: Iterable[int]) -> list[Record | None]:
        ids = [id_of(self.handles[number]) for number in numbers]
        return [record for first in range(0, len(ids), 500) for record in await self.store.read(ids[first : first + 500])]

    async def totals(self) -> Counter[str]:
        """Return how often each event has happened, over all queues, according to the store."""
        return sum(map(Counter[str], (await self.store.admin.metrics()).totals.values()), Counter[str]())

    async def waiting(self) -> dict[str, int]:
        """Return how many jobs have not ended, by status; empty if all have."""
        counts: Counter[str] = Counter()
        for queue in await self.store.admin.queues():
            counts.update({status.value: count for status, count in queue.counts.items() if not status.is_ended})
        return dict(+counts)

    async def assert_each_settled_once(self) -> None:
        """Assert that all jobs have run, nothing is left, and no job was settled more than once."""
        assert await self.told(self.handles) == {Status.SUCCEEDED.value: len(self.handles)}
        assert (await self.totals())["succeed"] == len(self.handles)
        assert await self.waiting() == {}
        assert all(self.runs[number] >= 1 for number in self.handles)


def id_of(handle: JobHandle[Any]) -> bytes:
    return bytes.fromhex(handle.id.replace("-", ""))


def elapsed_since(began_at: float) -> float:
    return time.monotonic() - began_at


async def one_job_is_done(broker: Broker) -> None:
    """Run one job, in a separate queue, because others do the same meanwhile."""
    envelope = an_envelope(queue=new_id().hex())
    assert await broker.enqueue([envelope]) == [Added(envelope.id)]
    [lease] = await broker.claim((await registered(broker)).id, 1, [envelope.queue], 10)
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
