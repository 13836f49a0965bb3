"""The SQLite broker: runs the engine on records in a file, in a separate thread (see writer.py)."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # close() needs it, and an upgrade may have replaced the module by then
import os
import weakref
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine import jobs, maintenance, sessions
from taskflow.broker.engine.broker import EngineAdmin, EngineBroker
from taskflow.broker.engine.jobs import are_new, enqueue
from taskflow.broker.engine.schedules import define, fire
from taskflow.broker.engine.seam import Claimed, Effect, Operation, Query
from taskflow.broker.migrations import Upgrade
from taskflow.broker.protocol import Added, Refused, UpkeepResult
from taskflow.broker.sqlite.examination import examine, rebuild
from taskflow.broker.sqlite.notifier import Notifier
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import Opening, StoreFile
from taskflow.broker.sqlite.tables import script
from taskflow.broker.sqlite.transactional import SqliteTransactional
from taskflow.broker.sqlite.transactions import Durability, Transactions
from taskflow.broker.sqlite.wakeups import SocketListener
from taskflow.broker.sqlite.writer import Writer, no_fork
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model import wording
from taskflow.model.clock import Seams
from taskflow.model.envelope import Envelope, check_namespace
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record
from taskflow.model.rules import Rules
from taskflow.model.schedule import Definition, Firing
from taskflow.model.session import Beat, BeatAnswer, Session

T = TypeVar("T")

_TIMEOUT: Final = 4.0
"""The default timeout in seconds. It is shorter than the default `enqueue_timeout` (5 s), so that the broker's error, which names the file,
is raised first."""


class SqliteBroker(EngineBroker):
    """Keeps jobs in a file, for all processes on one machine. See `taskflow.broker.protocol.Broker`.

    `path`       the file, which is created if it is missing; its folder must exist
    `namespace`  the prefix of the tables: several applications may share a file
    `shared`     True: the file may also contain tables of other programs
    `opening`    whether the first operation creates or migrates the tables, and whose file is accepted
    `timeout`    the maximum time in seconds to wait for a lock that another process holds
    `capacity`   the number of live jobs beyond which `enqueue` raises StoreFull; None for no limit

    The first operation opens the file, and raises BrokerRefused or BrokerUnavailable if something is wrong with it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        namespace: str = "taskflow",
        shared: bool = False,
        opening: Opening | None = None,
        seams: Seams | None = None,
        rules: Rules | None = None,
        timeout: float = _TIMEOUT,
        capacity: int | None = None,
    ) -> None:
        super().__init__(rules or Rules())
        # Made absolute now, so that a later change of the working directory does not matter.
        given = os.fspath(path) if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        real = os.path.realpath(given)
        self._store = StoreFile(real, check_namespace(namespace), shared, timeout, capacity, opening or Opening(), given)
        self._seams = seams or Seams()
        self._parts: _ProcessParts | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<SqliteBroker {self._store.path} {self._store.namespace!r}>"

    @property
    def admin(self) -> SqliteAdmin:
        return SqliteAdmin(self)

    # --- broker methods: each is one operation in the writer's transaction -------------------------------------------------

    async def run(self, operation: Operation[T], durability: Durability = Durability.FULL) -> T:
        return await self.call(durability, lambda store: store.drive(operation))

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        answers = await self.run(enqueue(envelopes, self.rules, assumes_new=self.assumes_new), Durability.GROWING)
        self.assumes_new = are_new(answers)
        return answers

    async def register(self, session: Session) -> tuple[str, ...]:
        return await self.run(sessions.register(session, self.rules), Durability.NORMAL)

    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        listener = self._running().listener

        def claim(store: SqliteStore) -> Claimed | None:
            claimed = store.claim(session, request, queues, limit)
            if claimed is not None:
                is_full = len(claimed.records) >= limit
                if is_full:
                    store.announcement.full_claims[tuple(queues)] += 1
                listener.claimed(is_full=is_full)
            return claimed

        return await self.call(Durability.NORMAL, claim)

    async def beat(self, beat: Beat) -> BeatAnswer:
        return await self.run(sessions.beat(beat, self.rules), Durability.NORMAL)

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        return await self.run(jobs.read(ids), Durability.READ)

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self.run(jobs.holders(keys, self.rules), Durability.READ)

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        def keep_up(store: SqliteStore) -> UpkeepResult:
            store.announcement.is_upkeep = True
            return store.drive(maintenance.upkeep(limit, ends, self.rules))

        return await self.call(Durability.NORMAL, keep_up)

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        return await self.run(define(definitions, session, age, self.rules), Durability.GROWING)

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        grows = any(firing.envelopes for firing in firings)
        return await self.run(fire(firings, self.rules), Durability.GROWING if grows else Durability.NORMAL)

    async def examine(self) -> list[Finding]:
        return await self._running().admin.call(Durability.READ, examine)

    async def rebuild(self) -> Rebuilt:
        return await self.call(Durability.FULL, rebuild)

    async def run_beside(self, operation: Operation[T]) -> T:
        """Run an admin operation on a separate connection, so that reads don't wait for the writer. Each store call is one transaction."""
        admin = self._running().admin
        try:
            effect = next(operation)
            while True:
                durability = Durability.READ if isinstance(effect, Query) else Durability.FULL
                effect = operation.send(await admin.call(durability, partial(_perform, effect)))
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            operation.close()

    # --- the file -----------------------------------------------------------------------------------------------------

    async def pending(self) -> Upgrade:
        return await self._alone(self._store, Transactions.pending)

    async def migrate(self) -> Upgrade:
        return await self._alone(replace(self._store, opening=replace(self._store.opening, migrates=True)), Transactions.migrate)

    async def sql(self) -> str:
        return script(await self.pending(), Statements(self._store.namespace), shared=self._store.shared)

    async def transactional(self) -> SqliteTransactional:
        # If the file is open already, the writer is not called: it might wait for a lock that the caller holds.
        if not self._running().writer.is_open:
            await self.call(Durability.READ, lambda _: None)
        this = weakref.ref(self)  # callers cache the operations, which must not keep the broker alive

        def writer() -> Writer:
            if (broker := this()) is None:
                raise BrokerUnavailable(wording.CLOSED)
            return broker._running().writer

        return SqliteTransactional(self._store, self._seams, self.rules, writer)

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self._running().listener.listen(topics)

    def sibling(self) -> SqliteBroker:
        """Return another broker on the same file, with a separate thread and connection."""
        sibling = copy(self)
        sibling._parts, sibling._is_closed = None, False
        return sibling

    async def close(self) -> None:
        self._is_closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            await asyncio.to_thread(parts.close)  # waits until accepted operations have run and the file is closed

    async def call(self, durability: Durability, operation: Callable[[SqliteStore], T]) -> T:
        return await self._running().writer.call(durability, operation)

    async def _alone(self, store: StoreFile, operation: Callable[[Transactions], T]) -> T:
        """Run a migration or a check of the version without the writer, which would migrate the file on opening it."""

        def run() -> T:
            with no_fork:
                return operation(Transactions(store, self._seams.clock))

        return await asyncio.to_thread(run)

    def _running(self) -> _ProcessParts:
        """Return the parts that this process uses, which the first call creates. A forked child creates its own, and leaves its parent's
        alone. Raises BrokerUnavailable after `close`."""
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        parts = self._parts
        if parts is None or parts.writer.pid != os.getpid():
            if parts is not None:
                parts.abandon()
            self._parts = parts = _ProcessParts(self._store, self._seams)
            weakref.finalize(self, parts.close)
        return parts


class SqliteAdmin(EngineAdmin):
    """The admin interface, whose reads don't wait for the writer."""

    def __init__(self, broker: SqliteBroker) -> None:
        super().__init__(broker)
        self._run = broker.run_beside


class _ProcessParts:
    """The parts that a broker uses in one process: the writer, the listener, and a second writer for the admin interface."""

    def __init__(self, store: StoreFile, seams: Seams) -> None:
        self.listener = SocketListener(store, WakeUpFlag(), seams.start_thread)
        notifiers = [Notifier(store, self.listener) for _ in range(2)]
        self.writer, self.admin = [Writer(Transactions(store, seams.clock, each), seams.start_thread) for each in notifiers]

    def close(self) -> None:
        if self.writer.pid == os.getpid():
            self.admin.close_and_wait()
            self.writer.close_and_wait()
            self.listener.close()

    def abandon(self) -> None:
        self.writer.abandon()
        self.admin.abandon()
        self.listener.abandon()


def _perform(effect: Effect, store: SqliteStore) -> Any:
    return store.perform(effect)
