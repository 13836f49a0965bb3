"""Test harnesses, one class for each kind of store. To add a store to the suite, add a class here."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import itertools
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from taskflow.broker import topics
from taskflow.broker.engine import records
from taskflow.broker.engine.records import INDEXES
from taskflow.broker.engine.seam import Query, Scan
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.protocol import Broker
from taskflow.model.clock import Seams
from taskflow.model.rules import Rules
from tests.reference import ReferenceBroker
from tests.reference.admin import ReferenceStore
from tests.support.postgres import PostgresServer, shared_postgres, the_newest_postgres_binary
from tests.support.processes import new_folder
from tests.support.servers import shared_redis
from tests.support.spoiling import Spoiler

if TYPE_CHECKING:
    from taskflow.broker.postgres import PostgresBroker


class Capability(Enum):
    """What only some kinds of store can do. A kind that lacks a capability gives a reason, in words that its users would accept."""

    RESTART = "the store outlives the process that opened it"
    SHARING = "several processes open the same store"
    BOOT = "its sessions live on its own machine, and end when that boots"
    TRANSACTIONS = "verbs can be part of a program's own transaction"
    ROW_LOCKS = "a transaction of one program leaves the rows alone that it does not touch"


class StoreHarness(ABC):
    """One store of one kind. `open` may be called again once the broker that it returned is closed."""

    name: ClassVar[str]
    lacks: ClassVar[Mapping[Capability, str]] = {}
    wakes_within: ClassVar[float] = 3.0
    """Seconds to wait for a nudge. Nudges arrive at once, so the whole time is spent only if one is missing."""

    much: ClassVar[int] = 4_096
    """Bytes of a payload that is large compared with everything else that a store needs room for."""

    def __init__(self, seams: Seams, rules: Rules, capacity: int | None = None) -> None:
        self.seams = seams
        self.rules = rules
        self.capacity = capacity

    @abstractmethod
    def open(self) -> Broker:
        """Open a broker on the store."""

    @property
    def place(self) -> str:
        """Return where another process finds the store: see tests/support/child.py. Not called for stores that only one process can use."""
        raise NotImplementedError

    def is_at_rest(self) -> bool:
        """Return True if the store has finished everything that a dead process requested."""
        return True

    def connect(self) -> Any:
        """Return a program's own DB-API connection to the store's database, in autocommit mode."""
        raise NotImplementedError

    def connect_elsewhere(self) -> Any:
        """Return a connection to another database of the same kind."""
        raise NotImplementedError

    def spoiler(self) -> Spoiler | None:
        """Return an object that corrupts stored values, or None if only the broker can write them."""
        return None

    @abstractmethod
    async def waiting(self, broker: Broker, queue: str) -> int:
        """Return the number of listeners that wait for jobs of this queue, as far as the store knows."""

    @abstractmethod
    def tagged(self) -> set[tuple[str, bytes]]:
        """Return the entries of the store's index of tags: pairs of a tag and the id of a job."""

    @abstractmethod
    def save(self) -> Any:
        """Return a copy of everything that the store holds, taken while the broker is open."""

    @abstractmethod
    def put_back(self, saved: Any) -> None:
        """Restore the store to a saved state, as if a power cut had lost its latest changes. No broker is open meanwhile."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the store and everything that belongs to it."""


class InProcessHarness(StoreHarness):
    """A store in the test's own memory."""

    wakes_within = 0.05  # its nudges arrive before the operation returns
    lacks = {
        Capability.RESTART: "jobs in a process's memory end with the process",
        Capability.SHARING: "a process's memory is its own",
        Capability.TRANSACTIONS: "no program has a transaction in another's memory",
    }
    _store: Any

    async def waiting(self, broker: Broker, queue: str) -> int:
        assert isinstance(broker, MemoryBroker | ReferenceBroker)
        await asyncio.sleep(0)
        return broker.flag.waiting([topics.queue(queue), topics.ANY_QUEUE])

    def save(self) -> Any:
        return self._copy(self._store)

    def put_back(self, saved: Any) -> None:
        self._store = self._copy(saved)

    def remove(self) -> None:
        """Do nothing: the store ends with the process."""

    def _copy(self, store: Any) -> Any:
        """Copy the store without its clock, which belongs to the world and continues when the store loses changes."""
        return copy.deepcopy(store, {id(self.seams.clock): self.seams.clock})


class MemoryHarness(InProcessHarness):
    name = "memory"

    def __init__(self, seams: Seams, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(seams, rules, capacity)
        self._store = MemoryStore(seams.clock, capacity)

    def open(self) -> Broker:
        return MemoryBroker(rules=self.rules, store=self._store)

    def tagged(self) -> set[tuple[str, bytes]]:
        entries = self._store.query(Query(scans=(Scan("tags", 1_000_000, with_records=False),))).scans[0]
        return {(entry.position[0], entry.ref.id) for entry in entries}


class ReferenceHarness(InProcessHarness):
    """The independent broker that the others are compared with. `store_class` may be a broken one: this is how mutants are made."""

    name = "reference"
    store_class: ClassVar[type[ReferenceStore]] = ReferenceStore

    def __init__(self, seams: Seams, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(seams, rules, capacity)
        self._store = self.store_class(seams.clock, rules, capacity)

    def open(self) -> Broker:
        return ReferenceBroker(store=self._store)

    def tagged(self) -> set[tuple[str, bytes]]:
        return {(tag, job_id) for tag, jobs in self._store.tagged.items() for job_id in jobs}


class SqliteHarness(StoreHarness):
    """A file in a separate folder, on an in-memory file system if there is one, because the suite doesn't measure fsync."""

    name = "sqlite"
    lacks = {Capability.ROW_LOCKS: "an open transaction that has written locks the whole file"}

    def __init__(self, seams: Seams, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(seams, rules, capacity)
        self.folder = new_folder("sqlite")
        self.path = self.folder / "jobs.db"

    def open(self) -> Broker:
        from taskflow.broker.sqlite import SqliteBroker

        return SqliteBroker(self.path, seams=self.seams, rules=self.rules, capacity=self.capacity)

    async def waiting(self, broker: Broker, queue: str) -> int:
        from taskflow.broker.sqlite.wake_folder import Listeners

        folder = f"{self.path}-wake"
        listeners = Listeners(await asyncio.to_thread(os.listdir, folder) if await asyncio.to_thread(os.path.exists, folder) else [])
        return sum(listeners.hears(name, topics.queue(queue), topics.ANY_QUEUE) for _, name in listeners.waiting)

    @property
    def place(self) -> str:
        return f"sqlite {self.path}"

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None)

    def connect_elsewhere(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "another.db", isolation_level=None)

    def _connected(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(self.path, timeout=30))

    def spoiler(self) -> Spoiler:
        from tests.support.spoilers import SqliteSpoiler

        return SqliteSpoiler(self.path)

    def tagged(self) -> set[tuple[str, bytes]]:
        with self._connected() as connection:
            return set(connection.execute("SELECT value, id FROM taskflow_tags"))

    def save(self) -> bytes:
        """Save through SQLite's own backup, because a plain copy of the files could be taken halfway through a checkpoint."""
        with self._connected() as source:
            return source.serialize()

    def put_back(self, saved: bytes) -> None:
        for file in self.folder.glob("jobs.db*"):
            file.unlink()
        self.path.write_bytes(saved)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


REV_BYTES: Final = 8


class RedisHarness(StoreHarness):
    """A separate namespace on a server that all tests share. A limited namespace makes the server's memory scarce while it exists."""

    name = "redis"
    much = 65_536
    lacks = {
        Capability.BOOT: "its workers run on many machines, and none of their boots is the server's",
        Capability.TRANSACTIONS: "no program has a transaction that stays open on a server of this kind",
    }

    def __init__(self, seams: Seams, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(seams, rules, capacity)
        self.server = shared_redis()
        self.namespace = f"test-{next(_NUMBERS)}"
        self._is_spoilt = False
        self._client = self.server.client()
        if capacity is not None:
            self._client.config_set("maxmemory", self._used() + capacity * self.much)

    def open(self) -> Broker:
        from taskflow.broker.redis import RedisBroker, RedisTarget

        return RedisBroker(
            RedisTarget(host="127.0.0.1", port=self.server.port), namespace=self.namespace, rules=self.rules, clock=self.seams.clock
        )

    async def waiting(self, broker: Broker, queue: str) -> int:
        lists = [self.prefix + b"waiting:", self.prefix + b"waiting:" + queue.encode()]
        return sum([await asyncio.to_thread(self._client.zcard, name) for name in lists])

    @property
    def prefix(self) -> bytes:
        return f"{{{self.namespace}:0}}:".encode()

    @property
    def place(self) -> str:
        return f"redis {self.server.port} {self.namespace}"

    def spoiler(self) -> Spoiler:
        from tests.support.spoilers import RedisSpoiler

        self._is_spoilt = True  # the keys that a corrupt record has named are unknown
        return RedisSpoiler(self.server.client(), self.prefix)

    def tagged(self) -> set[tuple[str, bytes]]:
        members: Any = self._client.zrange(self.prefix + b"i:tags", 0, -1)
        return {(tag.decode(), job_id) for tag, job_id in (member.split(b"\0\1", 1) for member in members)}

    def save(self) -> dict[bytes, bytes]:
        dumps = {key: self._client.dump(key) for key in self._keys() if self._client.ttl(key) == -1}  # not those that expire
        return {key: dump for key, dump in dumps.items() if dump is not None}

    def put_back(self, saved: dict[bytes, bytes]) -> None:
        self._forget()
        for key, dump in saved.items():
            self._client.restore(key, 0, dump)

    def remove(self) -> None:
        self._client.config_set("maxmemory", 0)
        strays = self._stray_bodies()
        self._forget()
        self._client.close()
        assert self._is_spoilt or not strays, f"large payloads or results whose jobs do not name them: {strays}"

    def _stray_bodies(self) -> list[bytes]:
        """Return large payloads and results that remain although their jobs have none or are gone."""
        from taskflow.broker.redis.records import reference_to
        from taskflow.model.ids import ID_BYTES

        begin = self.prefix + b"c:"
        strays = list[bytes]()
        for key in self._keys():
            if key.startswith(begin) and self._client.ttl(key) == -1:
                record_id, rev = key[len(begin) : -REV_BYTES], key[-REV_BYTES:]
                kind = b"j:" if len(record_id) == ID_BYTES else b"o:"
                stored: Any = self._client.get(self.prefix + kind + record_id)
                content: Any = self._client.get(key)
                if reference_to(content, rev) not in (stored or b""):
                    strays.append(key)
        return strays

    def _keys(self) -> list[bytes]:
        return list(self._client.scan_iter(match=f"{{{self.namespace}:*}}:*", count=1_000))

    def _forget(self) -> None:
        keys = self._keys()
        if keys:
            self._client.delete(*keys)

    def _used(self) -> int:
        return int(self._client.info("memory")["used_memory"])


_NUMBERS: Final = itertools.count(1)


class PostgresHarness(StoreHarness):
    """A separate schema in a database that all tests share. Creating a schema takes longer than most tests, so emptied ones are reused."""

    name = "postgres"
    lacks = {
        Capability.BOOT: "its workers run on many machines, and none of their boots is the server's",
    }

    def __init__(self, seams: Seams, rules: Rules, capacity: int | None = None) -> None:
        super().__init__(seams, rules, capacity)
        self.server = self.shared_server()
        self._is_spoilt = False
        self._emptied = _SCHEMAS.setdefault((self.name, rules), [])
        self.namespace, self._is_prepared = self._emptied.pop() if self._emptied else (f"test-{next(_NUMBERS)}", False)
        self._last: PostgresBroker | None = None

    @classmethod
    def shared_server(cls) -> PostgresServer:
        return shared_postgres()

    def open(self) -> Broker:
        from taskflow.broker.postgres import PostgresBroker
        from tests.support.kept_sessions import KeptTarget

        server = KeptTarget(
            host="127.0.0.1", port=self.server.port, user="postgres", database="postgres", tls="disable", schema=self.namespace
        )
        broker = PostgresBroker(server, namespace=self.namespace, rules=self.rules, clock=self.seams.clock, capacity=self.capacity)
        broker._is_prepared = self._is_prepared  # the check takes longer than most tests need
        self._last = broker
        return broker

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.server.url(), autocommit=True)

    def connect_elsewhere(self) -> Any:
        import psycopg

        return psycopg.connect(self.server.url("template1"), autocommit=True)

    @property
    def place(self) -> str:
        return f"postgres {self.server.port} {self.namespace}"

    def is_at_rest(self) -> bool:
        """Return True if no statement is running: the server continues a statement whose client is gone."""
        at_work = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND position($1 IN query) > 0 AND pid <> pg_backend_pid()"
        return self.server.rows(at_work, f'"{self.namespace}".') == [(0,)]

    def spoiler(self) -> Spoiler:
        from tests.support.spoilers import PostgresSpoiler

        self._is_spoilt = True
        return PostgresSpoiler(self.server.dsn, self.namespace)

    async def waiting(self, broker: Broker, queue: str) -> int:
        from taskflow.broker.postgres import PostgresBroker

        assert isinstance(broker, PostgresBroker)
        while not broker.listener.is_at_rest:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.005)
        query = f"SELECT count(*) FROM {self._table('idle')} WHERE topic IN ('queue:{queue}', 'queues') AND NOT is_nudged"
        there = await asyncio.to_thread(self._asked, f"SELECT to_regclass('{self._table('idle')}') IS NOT NULL")
        return int(await asyncio.to_thread(self._asked, query)) if there else 0

    def tagged(self) -> set[tuple[str, bytes]]:
        return {(tag, bytes(job_id)) for tag, job_id in self._ask(f"SELECT value, id FROM {self._table('tags')}")}

    def save(self) -> dict[str, str]:
        return {table: str(self._asked(f"SELECT json_agg(t)::text FROM {self._table(table)} AS t") or "[]") for table in TABLES}

    def put_back(self, saved: dict[str, str]) -> None:
        self._ask(self._deletions(TABLES))
        for table, rows in saved.items():
            name = self._table(table)
            self._ask(f"INSERT INTO {name} OVERRIDING SYSTEM VALUE SELECT * FROM json_populate_recordset(NULL::{name}, $rows${rows}$rows$)")

    def remove(self) -> None:
        from tests.support.kept_sessions import end_sessions

        if self._is_spoilt:
            end_sessions(self.server.port, self.namespace)
            self._ask(f'DROP SCHEMA IF EXISTS "{self.namespace}" CASCADE')
            return
        meta = self._table("meta")
        emptied = f"{self._deletions(TABLES[1:])} UPDATE {meta} SET value = 0 WHERE name = 'check_marks_at';"
        self._ask(f"DO $$ BEGIN IF to_regclass('{meta}') IS NOT NULL THEN {emptied} END IF; END $$")
        self._emptied.append((self.namespace, self._is_prepared or (self._last is not None and self._last._is_prepared)))

    def _deletions(self, names: Sequence[str]) -> str:
        """Return the deletions that empty the tables. They take a millisecond, whereas TRUNCATE takes forty."""
        return "".join(f"DELETE FROM {self._table(name)};" for name in names)

    def _table(self, name: str) -> str:
        return f'"{self.namespace}".{name}'

    def _asked(self, query: str) -> Any:
        [(value,)] = self._ask(query)
        return value

    def _ask(self, script: str) -> list[tuple[Any, ...]]:
        """Query through a connection that all tests share, because opening one takes longer than the query."""
        import psycopg

        try:
            cursor = _connection_to(self.server.url()).execute(script)
        except psycopg.OperationalError:  # a test has ended all connections
            _connection_to(self.server.url()).close()
            _connection_to.cache_clear()
            cursor = _connection_to(self.server.url()).execute(script)
        return cursor.fetchall() if cursor.description else []


@cache
def _connection_to(url: str) -> Any:
    import psycopg

    connection, owner = psycopg.connect(url, autocommit=True), os.getpid()
    atexit.register(lambda: connection.close() if os.getpid() == owner else None)  # a fork must not close it
    return connection


class NewestPostgresHarness(PostgresHarness):
    """A schema on the newest major version that this machine has."""

    name = "newest-postgres"

    @classmethod
    def shared_server(cls) -> PostgresServer:
        return shared_postgres(the_newest_postgres_binary().path)


TABLES: Final = (
    *("meta", "requests", "marks", "lowered", *records.TABLES.values(), *(index.name for index in INDEXES if index.entries)),
    *("tally", "totals", "awaited", "idle"),
)
"""The tables of PostgreSQL."""

_SCHEMAS: Final[dict[tuple[str, Rules], list[tuple[str, bool]]]] = {}
"""Emptied schemas, and whether each has been checked."""


BROKERS: Final[tuple[type[StoreHarness], ...]] = (MemoryHarness, SqliteHarness, RedisHarness, PostgresHarness)
