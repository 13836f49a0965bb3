"""Stores to test. A store whose methods are coroutines joins by one more class."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final

from taskflow.broker.engine.records import READY, Kind
from taskflow.broker.engine.seam import ABSENT, NOW, Addition, Answer, Applied, Apply, Claimed, Effect, Put, Query, Record, Ref, Rev, Step
from taskflow.broker.memory.store import MemoryStore
from taskflow.model.clock import ManualClock

NOTHING: Final[Mapping[str, Any]] = {}


class SeamStore(ABC):
    """A store, empty at first. `open` is called in the event loop of the test."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        yield cls()

    @abstractmethod
    async def perform(self, effect: Effect) -> Any:
        """Answer what an operation yields."""

    @abstractmethod
    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None: ...

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Move the store's clocks."""

    async def spoil(self, ref: Ref) -> bool:
        """Make the record's header unreadable. Return False if nobody but the store can write its records."""
        return False

    @asynccontextmanager
    async def lock(self, ref: Ref) -> AsyncIterator[bool]:
        """Lock the record in a transaction of another program. Give False if there are none in this store."""
        yield False

    # --- what tests say in one word ---------------------------------------------------------------------------

    def ref(self, kind: int = Kind.JOB) -> Ref:
        """Return the name of a record that does not exist yet."""
        return Ref(kind, next(self._numbers).to_bytes(16, "big"))

    async def now(self) -> int:
        now: int = (await self.perform(Query())).now
        return now

    async def load(self, ref: Ref, *, with_content: bool = False) -> Record | None:
        found: Record | None = (await self.perform(Query((ref,), with_content=with_content))).records[ref]
        return found

    async def found(self, ref: Ref, *, with_content: bool = False) -> Record:
        record = await self.load(ref, with_content=with_content)
        assert record is not None
        return record

    async def header(self, ref: Ref) -> dict[str, Any]:
        return (await self.found(ref)).header

    async def rev(self, ref: Ref) -> Rev:
        record = await self.load(ref)
        return ABSENT if record is None else record.rev

    async def apply(self, *steps: Step, grows: bool = False) -> list[Answer]:
        answers, _ = await self.perform(Apply(steps, grows))
        assert len(answers) == len(steps)
        return list(answers)

    async def put(self, ref: Ref, header: Mapping[str, Any] = NOTHING, **parts: Any) -> Ref:
        """Put a record as it is, or a new one."""
        assert await self.apply(Step({ref: await self.rev(ref)}, (Put(ref, header, **parts),))) == [Applied()]
        return ref

    async def drop(self, ref: Ref) -> None:
        assert await self.apply(Step({ref: await self.rev(ref)}, drops=(ref,))) == [Applied()]

    async def add(self, ref: Ref, n: int, *, field: str = "awaits", most: int | None = None) -> Answer:
        """Add to a field, beside the put of another record: no step has additions alone."""
        other = self.ref(Kind.MARK)
        [answer] = await self.apply(Step({other: ABSENT}, (Put(other, {}),), adds=(Addition(ref, field, n, most),)))
        return answer

    async def job(self, header: Mapping[str, Any] = NOTHING, **parts: Any) -> Ref:
        """Put a new job, READY if the header says nothing else."""
        defaults = {"status": READY, "queue": "default", "job": "a_job", "due_at": NOW}
        return await self.put(self.ref(), {**defaults, **header}, **parts)

    async def session(self, header: Mapping[str, Any] = NOTHING) -> bytes:
        """Put a new session, and return its id."""
        return (await self.put(self.ref(Kind.SESSION), {"name": "host:1", "ttl": 20_000_000, **header})).id

    async def running(self, header: Mapping[str, Any] = NOTHING, **parts: Any) -> Record:
        """Put a job in a queue that has no other, and claim it by a new session."""
        ref = await self.job({"queue": f"queue-{next(self._numbers)}", **header}, **parts)
        claimed = await self.claim(await self.session(), 1, [(await self.header(ref))["queue"]])
        assert claimed is not None
        [record] = claimed.records
        assert record.ref == ref
        return record


class MemorySeamStore(SeamStore):
    """The store of `memory://`."""

    name = "memory"

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock, capacity)

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        yield cls(capacity)

    async def perform(self, effect: Effect) -> Any:
        return self.store.perform(effect)

    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None:
        return self.store.claim(session, request, queues, limit)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


STORES: Final[tuple[type[SeamStore], ...]] = (MemorySeamStore,)
