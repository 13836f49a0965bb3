"""What the tests of a worker's life share: a broker that can be unavailable, a job that waits, and recorders of events."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from taskflow import BrokerUnavailable, JobContext, JobHandle, JobInfo, Middleware, job
from taskflow.app.app import default_app
from taskflow.app.events import Event
from taskflow.broker.memory import MemoryBroker
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.ids import parse_id
from taskflow.model.record import Record
from taskflow.worker.options import WorkerOptions
from tests.support.records import take_back_last


class EventRecorder:
    """The worker's events, from all its threads, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for(self, kind: type[Event], times: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while len(self.of(kind)) < times:
                self._changed.clear()
                await self._changed.wait()


class EndedRecorder(Middleware):
    """Records the arguments of its hook `ended`."""

    def __init__(self) -> None:
        self.infos: list[JobInfo] = []
        self._changed = asyncio.Event()

    async def ended(self, info: JobInfo) -> None:
        self.infos.append(info)
        self._changed.set()

    async def wait_for(self, number: int) -> dict[str, JobInfo]:
        """Wait for this number of calls, and return their arguments by the job's id."""
        async with asyncio.timeout(20):
            while len(self.infos) < number:
                self._changed.clear()
                await self._changed.wait()
        return {info.id: info for info in self.infos}

    def about(self, handle: JobHandle[Any]) -> JobInfo:
        [info] = [info for info in self.infos if info.id == handle.id]
        return info


class FaultyBroker(MemoryBroker):
    """A memory broker that can be unavailable: every operation named in `away` raises, and has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[str] = set()
        self.delay_claims = 0.0
        for verb in ("register", "claim", "beat", "settle", "upkeep"):
            setattr(self, verb, self._faulty(verb, getattr(self, verb)))

    def _faulty(self, verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **more: Any) -> Any:
            self._check(verb)
            return await method(*args, **more)

        return call

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        leases = await super().claim(session, request, queues, limit)
        await asyncio.sleep(self.delay_claims)
        return leases

    async def take_back(self) -> ClaimId:
        """The worker's only lease is no longer its own, and its job is ready."""
        return take_back_last(self)

    async def records(self, *handles: JobHandle[Any]) -> list[Record]:
        return [record for record in await self.read([parse_id(handle.id) for handle in handles]) if record is not None]

    def _check(self, verb: str) -> None:
        if verb in self.away:
            raise BrokerUnavailable("it is away, for this test")


def count_calls(broker: object, *verbs: str) -> Counter[str]:
    """Count the calls of these methods from now on."""
    calls = Counter[str]()

    def counted(verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls[verb] += 1
            return method(*args, **more)

        return call

    for verb in verbs:
        setattr(broker, verb, counted(verb, getattr(broker, verb)))
    return calls


class Run:
    started: asyncio.Event
    release: asyncio.Event
    release_thread: threading.Event


@job(name="tests.life.waits")
async def waits(ctx: JobContext) -> str:
    Run.started.set()
    await Run.release.wait()
    return f"epoch {ctx.epoch}"


@asynccontextmanager
async def a_faulty_broker() -> AsyncIterator[FaultyBroker]:
    broker = FaultyBroker()
    with default_app().using(broker):
        yield broker


def options(heard: EventRecorder, **more: Any) -> WorkerOptions:
    return WorkerOptions(subscribers=(heard,), **{"ttl": 0.4, "grace": 5.0, "stop_timeout": 0.5, **more})
