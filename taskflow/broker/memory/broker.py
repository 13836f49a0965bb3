"""The memory broker: runs the engine on records in this process's memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeVar

from taskflow.broker import topics
from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine.broker import EngineBroker
from taskflow.broker.engine.seam import Claimed, Operation
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.protocol import MAX_NUDGED_WHEN_DUE
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules

T = TypeVar("T")


class MemoryBroker(EngineBroker):
    """Keeps jobs in this process's memory: for tests, and for jobs that may be lost with the process.

    `capacity` is the maximum number of live jobs; None means no limit. A lock guards the store, so that all threads and event loops of the
    process can share it.
    """

    def __init__(
        self, *, seams: Seams | None = None, rules: Rules | None = None, capacity: int | None = None, store: MemoryStore | None = None
    ) -> None:
        super().__init__(rules or Rules())
        self._store = store or MemoryStore((seams or Seams()).clock, capacity)
        self._lock = threading.Lock()
        self.flag = WakeUpFlag()

    async def run(self, operation: Operation[T]) -> T:
        return self.perform(operation)

    def perform(self, operation: Operation[T]) -> T:
        """Run an operation atomically, then wake the waiters that it concerns, and return its answer."""
        with self._lock:
            try:
                effect = next(operation)
                while True:
                    effect = operation.send(self._store.perform(effect))
            except StopIteration as end:
                answer: T = end.value
            finally:
                operation.close()
                woken, readied = self._store.take_wakeups(is_heard=self.flag.is_heard)
        if woken or readied:
            self._announce(woken, readied)
        return answer

    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        with self._lock:
            claimed = self._store.claim(session, request, queues, limit)
            woken, readied = self._store.take_wakeups(is_heard=self.flag.is_heard)
        if woken or readied:
            self._announce(woken, readied)
        return claimed

    async def examine(self) -> list[Finding]:
        return [
            Finding("persistence", "note", "jobs are lost when this process ends: use this broker for tests, and for jobs that may be lost")
        ]

    async def rebuild(self) -> Rebuilt:
        return Rebuilt()  # no other program can change this process's memory

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self.flag.listen(topics)

    def sibling(self) -> MemoryBroker:
        """Return this broker: it has no connection, so all threads can share it."""
        return self

    async def close(self) -> None:
        """Do nothing: the jobs are kept for as long as this object exists."""

    def _announce(self, woken: set[str], readied: dict[str, int]) -> None:
        if topics.DUE in woken:
            woken.discard(topics.DUE)
            self.flag.wake_some([topics.DUE], MAX_NUDGED_WHEN_DUE)
        if woken:
            self.flag.wake(woken)
        for queue, jobs in readied.items():
            self.flag.wake_some([topics.queue(queue), topics.ANY_QUEUE], jobs)
