"""Stores to test. A store whose methods are coroutines joins by one more class."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import asyncpg
import pytest

from taskflow.broker.engine.records import FAILED, READY, RUNNING, TABLES, Kind
from taskflow.broker.engine.seam import ABSENT, NOW, Addition, Answer, Applied, Apply, Claimed, Effect, Put, Query, Record, Ref, Rev, Step
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.redis.connections import Command, ConnectionPool
from taskflow.broker.redis.records import Contents
from taskflow.broker.redis.scripts import Scripts
from taskflow.broker.redis.server import RedisTarget
from taskflow.broker.redis.store import RedisStore
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.transactions import Durability
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.errors import BrokerError, BrokerUnavailable
from taskflow.model.rules import Rules
from taskflow.model.stored_values import LATEST
from tests.support.kept_sessions import KeptTarget
from tests.support.postgres import shared_postgres
from tests.support.processes import HOST, new_folder
from tests.support.servers import shared_redis

NOTHING: Final[Mapping[str, Any]] = {}


def possible(header: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """Return the header of a job with the fields that it must have in its status. A store may refuse a job without them."""
    status = header.get("status", READY)
    needed: dict[str, Any] = {"queue": "default", "job": "a_job"}
    if status == RUNNING:
        needed |= {"session": bytes(16), "claim": bytes(12), "claimed_steady": 0}
    if status > RUNNING:
        needed |= {"ended_at": 0, "fade_at": LATEST}
    if status == FAILED:
        needed["cause"] = b"a cause!"
    return {**needed, **header}


def a_job(ref: Ref, header: Mapping[str, Any] = NOTHING, **parts: Any) -> Put:
    """Return the put of a new job."""
    return Put(ref, possible(header), **parts)


T = TypeVar("T")


@asynccontextmanager
async def closing_at_the_end(opened: T) -> AsyncIterator[T]:
    try:
        yield opened
    finally:
        await opened.close()  # type: ignore[attr-defined]


class SeamStore(ABC):
    """A store, empty at first. `open` is called in the event loop of the test."""

    name: ClassVar[str]
    examples: ClassVar[int] = 25
    """How many random histories a test tries."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self._numbers = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        """Open an empty store."""
        yield cls()

    @abstractmethod
    async def perform(self, effect: Effect) -> Any:
        """Answer what an operation yields."""

    @abstractmethod
    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None: ...

    def advance(self, seconds: float) -> None:
        """Move the store's clocks."""
        self.clock.advance(seconds)

    async def spoil(self, ref: Ref) -> bool:
        """Make the job's header unreadable. Return False if the store admits no such header."""
        return False

    @asynccontextmanager
    async def lock(self, ref: Ref) -> AsyncIterator[bool]:
        """Lock the record in a transaction of another program. Yield False if this store has none."""
        yield False

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SeamStore]:
        """Yield another client of the same records, which uses them at the same time if they are on a server."""
        yield self

    @asynccontextmanager
    async def losing_replies(self) -> AsyncIterator[bool]:
        """Lose the first reply to each call, so that the same bytes are sent again. Yield False if this store loses none."""
        yield False

    def _beside(self, other: SeamStore) -> SeamStore:
        """Let another client make other ids."""
        other._numbers = self._numbers
        return other

    def ref(self, kind: int = Kind.JOB) -> Ref:
        """Return the name of a record that does not exist yet."""
        number = next(self._numbers)
        return Ref(kind, b"%016d" % number if kind in (Kind.QUEUE, Kind.SCHEDULE) else number.to_bytes(16, "big"))

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
        """Add to a field, together with the put of another record: no step has only additions."""
        other = self.ref(Kind.MARK)
        [answer] = await self.apply(Step({other: ABSENT}, (Put(other, {}),), adds=(Addition(ref, field, n, most),)))
        return answer

    async def new(self, kind: int, header: Mapping[str, Any] = NOTHING) -> Ref:
        """Put a new record with no more fields than it must have."""
        return await self.put(self.ref(kind), possible(header) if kind == Kind.JOB else header)

    async def job(self, header: Mapping[str, Any] = NOTHING, **parts: Any) -> Ref:
        """Put a new job that is due now, READY if the header says nothing else."""
        return await self.put(self.ref(), possible({"due_at": NOW, **header}), **parts)

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
        return await self.found(ref, with_content=True)  # a claim returns no more than a lease needs


class MemorySeamStore(SeamStore):
    """The store of `memory://`."""

    name = "memory"

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.store = MemoryStore(self.clock, capacity)

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        yield cls(capacity)

    async def perform(self, effect: Effect) -> Any:
        return self.store.perform(effect)

    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None:
        return self.store.claim(session, request, queues, limit)


class PostgresSeamStore(SeamStore):
    """The store of `postgresql://`, in a schema that the tests of a process share."""

    name = "postgres"
    examples = 10

    def __init__(self, broker: PostgresBroker, clock: ManualClock, other: asyncpg.Connection) -> None:
        super().__init__(clock)
        self._broker, self._other = broker, other

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        server, clock, database = shared_postgres(), ManualClock(), "postgres"
        target = KeptTarget(host=HOST, port=server.port, user="postgres", database=database, tls="disable", schema=_SCHEMA)
        broker = PostgresBroker(target, namespace=_SCHEMA, clock=clock, capacity=capacity)
        other = await asyncpg.connect(server.url(database))
        async with closing_at_the_end(other), closing_at_the_end(broker):
            await broker.migrate()
            tables = await other.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename <> 'meta'", _SCHEMA)
            await other.execute("".join(f"DELETE FROM {_SCHEMA}.{table};" for (table,) in tables))  # TRUNCATE would end all plans
            yield cls(broker, clock, other)

    async def perform(self, effect: Effect) -> Any:
        return await self._broker.store.perform(effect)

    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None:
        return await self._broker.claim_records(session, request, queues, limit)

    @asynccontextmanager
    async def lock(self, ref: Ref) -> AsyncIterator[bool]:
        async with self._other.transaction():
            await self._other.fetch(f"SELECT 1 FROM {_SCHEMA}.{TABLES[ref.kind]} WHERE id = $1 FOR UPDATE", ref.id)
            yield True

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SeamStore]:
        async with closing_at_the_end(self._broker.sibling()) as broker:
            yield self._beside(PostgresSeamStore(broker, self.clock, self._other))

    @asynccontextmanager
    async def losing_replies(self) -> AsyncIterator[bool]:
        fetch = self._broker.store._fetch

        async def fetch_twice(statement: str, *arguments: Any) -> list[Any]:
            await fetch(statement, *arguments)
            return await fetch(statement, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._broker.store, "_fetch", fetch_twice)
            yield True


class SqliteSeamStore(SeamStore):
    """The store of `sqlite:///`, in a separate file."""

    name = "sqlite"
    examples = 10

    def __init__(self, broker: SqliteBroker, path: Path, clock: ManualClock) -> None:
        super().__init__(clock)
        self._broker, self._path = broker, path

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        folder, clock = new_folder("seam"), ManualClock()
        broker = SqliteBroker(folder / "jobs.db", seams=Seams(clock), capacity=capacity)
        async with closing_at_the_end(broker):
            yield cls(broker, folder / "jobs.db", clock)
        shutil.rmtree(folder)

    async def perform(self, effect: Effect) -> Any:
        return await self._broker.call(Durability.GROWING, lambda store: store.perform(effect))

    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None:
        return await self._broker.claim_records(session, request, queues, limit)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SeamStore]:
        async with closing_at_the_end(self._broker.sibling()) as broker:
            yield self._beside(SqliteSeamStore(broker, self._path, self.clock))

    async def spoil(self, ref: Ref) -> bool:
        with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as connection:
            connection.execute(f"UPDATE taskflow_{TABLES[ref.kind]} SET queue = CAST(x'61ff' AS TEXT) WHERE id = ?", (ref.id,))
        return True


class RedisSeamStore(SeamStore):
    """The store of `redis://`, under a prefix that the tests of a process share."""

    name = "redis"
    _prefix = "{seam}:"

    def __init__(self, pool: ConnectionPool, clock: ManualClock) -> None:
        super().__init__(clock)
        self._pool, self._scripts, self._sends = pool, Scripts(Rules()), 1
        self._store = RedisStore(self._call, Contents(lambda: pool, self._prefix), clock.steady, self._lost)

    @classmethod
    @asynccontextmanager
    async def open(cls, capacity: int | None = None) -> AsyncIterator[SeamStore]:
        if capacity is not None:
            pytest.skip("the room of Redis is a number of bytes, not of jobs: see tests/stores/redis/test_troubles.py")
        pool = ConnectionPool(RedisTarget(host=HOST, port=shared_redis().port))
        with shared_redis().client() as client:
            for key in client.scan_iter(f"{cls._prefix}*"):
                client.delete(key)
        async with closing_at_the_end(pool):
            yield cls(pool, ManualClock())

    async def _call(self, name: str, arguments: bytes, *, ahead: Sequence[Command] = (), on_disk: bool = False) -> Any:
        reply = None
        for _ in range(self._sends):
            time = f"{self.clock.wall()}:{self.clock.steady()}"
            reply = await self._pool.run(self._scripts[name], self._prefix, time, arguments, ahead=ahead, on_disk=on_disk)
        return reply

    async def _lost(self) -> BrokerError:
        return BrokerUnavailable("lost")

    async def perform(self, effect: Effect) -> Any:
        return await self._store.perform(effect)

    async def claim(self, session: bytes, request: int, queues: Sequence[str] = (), limit: int = 10) -> Claimed | None:
        found = await self._store.claim(session, request, queues, limit, "l" * 16, is_listed=False)
        return None if found is None else await self._store.claimed(found[0], found[2])

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SeamStore]:
        pool = ConnectionPool(RedisTarget(host=HOST, port=shared_redis().port))
        async with closing_at_the_end(pool):
            yield self._beside(RedisSeamStore(pool, self.clock))

    @asynccontextmanager
    async def losing_replies(self) -> AsyncIterator[bool]:
        self._sends = 2
        yield True
        self._sends = 1

    async def spoil(self, ref: Ref) -> bool:
        await self.write(ref, (await self.bytes_of(ref)).replace(b"default", b"\xff" * 7))
        return True

    async def bytes_of(self, job: Ref) -> bytes:
        stored: bytes = await self._pool.ask("GET", f"{self._prefix}j:".encode() + job.id)
        return stored

    async def write(self, job: Ref, stored: bytes) -> None:
        await self._pool.ask("SET", f"{self._prefix}j:".encode() + job.id, stored)


_SCHEMA: Final = "seam"

STORES: Final[tuple[type[SeamStore], ...]] = (MemorySeamStore, PostgresSeamStore, SqliteSeamStore, RedisSeamStore)
