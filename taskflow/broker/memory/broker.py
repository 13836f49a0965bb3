"""The memory broker: its store behind a lock, for all threads and event loops of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from taskflow.broker import topics
from taskflow.broker.memory.console import MemoryStore
from taskflow.broker.nudges import Nudges, WakeUpFlag
from taskflow.broker.protocol import UPKEEPERS
from taskflow.model.rules import Rules
from taskflow.model.seams import Seams

T = TypeVar("T")
P = ParamSpec("P")


class _Atomically(Protocol):
    def __call__(self, verb: Callable[[], T]) -> T: ...


class _Locked(Protocol):
    _store: MemoryStore

    def _atomically(self, verb: Callable[[], T]) -> T: ...


def _verb(verb: Callable[Concatenate[MemoryStore, P], T]) -> Callable[Concatenate[_Locked, P], Coroutine[Any, Any, T]]:
    """Return a method that runs this verb of the store under its lock."""

    async def run(self: _Locked, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: T = self._atomically(lambda: getattr(self._store, verb.__name__)(*args, **kwargs))
        return answer

    return run


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

    enqueue = _verb(MemoryStore.enqueue)
    register = _verb(MemoryStore.register)
    claim = _verb(MemoryStore.claim)
    beat = _verb(MemoryStore.beat)
    settle = _verb(MemoryStore.settle)
    cancel = _verb(MemoryStore.cancel)
    read = _verb(MemoryStore.read)
    upkeep = _verb(MemoryStore.upkeep)

    def listen(self, topics: Sequence[str]) -> Nudges:
        return self.flag.listen(topics)

    def sibling(self) -> MemoryBroker:
        """Return this broker, because it has no connection that a thread could wait for."""
        return self

    async def close(self) -> None:
        """Do nothing: the jobs exist as long as the object."""

    def _atomically(self, verb: Callable[[], T]) -> T:
        with self._lock:
            self._store.begin_verb()
            answer = verb()
            rung, self._store.rung = self._store.rung, set()
            nudges = self._store.take_nudges()
        if topics.DUE in rung:
            rung.discard(topics.DUE)
            self.flag.wake_some([topics.DUE], UPKEEPERS)
        if rung:
            self.flag.wake(rung)
        for queue, jobs in nudges.items():
            self.flag.wake_some([topics.queue(queue), topics.ANY_QUEUE], jobs)
        return answer


class MemoryConsole:
    def __init__(self, store: MemoryStore, atomically: _Atomically) -> None:
        self._store = store
        self._atomically = atomically

    queues = _verb(MemoryStore.queue_records)
    browse = _verb(MemoryStore.browse)
    workers = _verb(MemoryStore.session_records)
    retry = _verb(MemoryStore.redo)
    purge = _verb(MemoryStore.purge)
    pause = _verb(MemoryStore.pause)
    resume = _verb(MemoryStore.resume)
    metrics = _verb(MemoryStore.metrics)
    examine = _verb(MemoryStore.findings)
