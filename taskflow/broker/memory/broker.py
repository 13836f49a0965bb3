"""The memory broker, which guards its store with a lock so that all threads and event loops of the process can share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from taskflow.broker import topics as names
from taskflow.broker.console import Finding, JobFilter, Metrics, QueueRecord, Redone
from taskflow.broker.memory.console import MemoryStore
from taskflow.broker.nudges import Nudges, WakeUpFlag
from taskflow.broker.protocol import UPKEEPERS, Added, Refused, Upkept
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import Amendment, Definition, Firing, ScheduleRecord
from taskflow.model.seams import Seams
from taskflow.model.session import Beat, BeatAnswer, Session, SessionRecord
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")


class _Atomically(Protocol):
    def __call__(self, verb: Callable[[], T]) -> T: ...


class MemoryBroker:
    """Keeps jobs in this process's memory: for tests, and for jobs that may be lost with the process.

    `capacity` is the maximum number of live jobs; None means no limit.
    """

    def __init__(
        self, *, seams: Seams | None = None, rules: Rules | None = None, capacity: int | None = None, store: MemoryStore | None = None
    ) -> None:
        seams = seams or Seams()
        self._store = store or MemoryStore(seams.clock, rules or Rules(), capacity)
        self._lock = threading.Lock()
        self.flag = WakeUpFlag()

    @property
    def console(self) -> MemoryConsole:
        return MemoryConsole(self._store, self._atomically)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        return self._atomically(lambda: self._store.enqueue(envelopes))

    async def register(self, session: Session) -> None:
        self._atomically(lambda: self._store.register(session))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        return self._atomically(lambda: self._store.claim(session, request, queues, limit))

    async def beat(self, beat: Beat) -> BeatAnswer:
        return self._atomically(lambda: self._store.beat(beat))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return self._atomically(lambda: self._store.settle(settlements))

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return self._atomically(lambda: self._store.cancel(ids))

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        return self._atomically(lambda: self._store.read(ids))

    async def upkeep(self, limit: int) -> Upkept:
        return self._atomically(lambda: self._store.upkeep(limit))

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        return self._atomically(lambda: self._store.define(definitions, session, age))

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        return self._atomically(lambda: self._store.fire(firings))

    def listen(self, topics: Sequence[str]) -> Nudges:
        return self.flag.listen(topics)

    def sibling(self) -> MemoryBroker:
        """Return this broker: it has no connection, so all threads can share it."""
        return self

    async def close(self) -> None:
        """Do nothing: the jobs are kept for as long as this object exists."""

    def _atomically(self, verb: Callable[[], T]) -> T:
        with self._lock:
            self._store.begin_verb()
            answer = verb()
            rung, self._store.rung = self._store.rung, set()
            nudges = self._store.take_nudges()
        if names.DUE in rung:
            rung.discard(names.DUE)
            self.flag.wake_some([names.DUE], UPKEEPERS)
        if rung:
            self.flag.wake(rung)
        for queue, jobs in nudges.items():
            self.flag.wake_some([names.queue(queue), names.ANY_QUEUE], jobs)
        return answer


class MemoryConsole:
    def __init__(self, store: MemoryStore, atomically: _Atomically) -> None:
        self._store = store
        self._atomically = atomically

    async def queues(self) -> list[QueueRecord]:
        return self._atomically(self._store.queue_records)

    async def browse(self, job_filter: JobFilter, *, before: bytes | None = None, limit: int = 100) -> list[Record]:
        return self._atomically(lambda: self._store.browse(job_filter, before=before, limit=limit))

    async def workers(self) -> list[SessionRecord]:
        return self._atomically(self._store.session_records)

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return self._atomically(lambda: self._store.redo(ids))

    async def purge(self, job_filter: JobFilter, *, limit: int = 1_000) -> int:
        return self._atomically(lambda: self._store.purge(job_filter, limit=limit))

    async def pause(self, queue: str) -> None:
        self._atomically(lambda: self._store.pause(queue))

    async def resume(self, queue: str) -> None:
        self._atomically(lambda: self._store.resume(queue))

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        return self._atomically(lambda: self._store.schedule_records(names))

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return self._atomically(lambda: self._store.amend_schedule(name, amendment))

    async def metrics(self) -> Metrics:
        return self._atomically(self._store.metrics)

    async def examine(self) -> list[Finding]:
        return self._atomically(self._store.findings)
