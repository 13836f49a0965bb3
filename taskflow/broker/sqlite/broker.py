"""The SQLite broker, which runs verbs in a writer's thread and passes on wake-ups."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # imported for close(), because another version may be installed in its place by then
import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from taskflow.broker.migrations import Upgrade
from taskflow.broker.protocol import Added, Refused, Upkept
from taskflow.broker.sqlite import claim, enqueue, forks, schedules, session as sessions, settle, upkeep
from taskflow.broker.sqlite.announcement import Announcement
from taskflow.broker.sqlite.console import SqliteConsole
from taskflow.broker.sqlite.job_table import NeedsRepair
from taskflow.broker.sqlite.migrations import script
from taskflow.broker.sqlite.notifier import SocketNotifier
from taskflow.broker.sqlite.queued_verb import Durability
from taskflow.broker.sqlite.reader import CannotRead, ReadTransactions
from taskflow.broker.sqlite.size_limits import check_definitions, check_payloads
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store_file import Opening, SpaceLimits, StoreFile
from taskflow.broker.sqlite.transactional import SqliteTransactional
from taskflow.broker.sqlite.transactions import Transactions
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.broker.sqlite.wakeups import SocketListener
from taskflow.broker.sqlite.writer import Writer
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model import wording
from taskflow.model.envelope import Envelope, Lease, check_namespace
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import Definition, Firing
from taskflow.model.seams import Seams
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")

_TIMEOUT: Final = 4.0
"""The default timeout in seconds. It is shorter than the default `enqueue_timeout`
(5 s), so that the broker's error, which names the lock's owner, comes first."""


class SqliteBroker:
    """Keeps jobs in a file, for all processes on one machine. See `taskflow.broker.protocol.Broker`.

    `path`       the file, which is created if it is missing; its folder must exist
    `namespace`  the prefix of the tables: several applications may share a file
    `shared`     True: the file may also contain tables of other programs
    `opening`    whether the first verb creates or migrates the tables, and whose file is accepted
    `timeout`    the maximum time in seconds to wait for a lock that another process holds
    `limits`     limits on the number of jobs and the disk space

    The first verb opens the file, and raises BrokerRefused or BrokerUnavailable if something is wrong with it.
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
        limits: SpaceLimits | None = None,
    ) -> None:
        # Made absolute now, so that a later change of the working directory does not matter.
        given = os.fspath(path) if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        real = os.path.realpath(given)
        self._store = StoreFile(real, check_namespace(namespace), shared, timeout, limits or SpaceLimits(), opening or Opening(), given)
        self._seams = seams or Seams()
        self._rules = rules or Rules()
        self._parts: _ProcessParts | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<SqliteBroker {self._store.path} {self._store.namespace!r}>"

    @property
    def console(self) -> SqliteConsole:
        return SqliteConsole(self)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        check_payloads(envelopes)
        return await self.call(
            Durability.FULL_AND_SENT, lambda transitions: enqueue.enqueue(transitions, envelopes, self._store.limits.capacity)
        )

    async def register(self, session: Session) -> None:
        await self.call(Durability.NORMAL, lambda transitions: sessions.register(transitions, session))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        listener = self._running().listener
        return await self.call(Durability.NORMAL, lambda transitions: self._claim(transitions, listener, session, request, queues, limit))

    def _claim(
        self, transitions: Transitions, listener: SocketListener, session: bytes, request: int, queues: Sequence[str], limit: int
    ) -> list[Lease]:
        leases = claim.claim(transitions, session, request, queues, limit)
        is_full = len(leases) >= limit
        if is_full:
            transitions.announcement.full_claims[tuple(queues)] += 1
        listener.claimed(is_full=is_full)
        return leases

    async def beat(self, beat: Beat) -> BeatAnswer:
        return await self.call(Durability.NORMAL, lambda transitions: self._beat(transitions, beat))

    def _beat(self, transitions: Transitions, beat: Beat) -> BeatAnswer:
        answer = sessions.beat(transitions, beat)
        return msgspec.structs.replace(answer, outlook=upkeep.outlook(transitions, beat.session)) if beat.looks else answer

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self.call(Durability.FULL, lambda transitions: settle.settle(transitions, settlements))

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self.call(Durability.FULL, lambda transitions: settle.cancel(transitions, ids))

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        listener = self._running().listener
        ended = {job_id: record for job_id in ids if (record := listener.take_ended(job_id)) is not None}
        if ended and len(ended) == len(ids):
            return [*map(ended.get, ids)]
        return await self._look_in_writer(lambda transitions: settle.read(transitions, ids))

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._look_in_writer(lambda transitions: settle.live_holders(transitions, keys))

    async def upkeep(self, limit: int, *, ends: bool = False) -> Upkept:
        return await self.call(Durability.NORMAL, lambda transitions: upkeep.upkeep(transitions, limit, ends=ends))

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        check_definitions(definitions)
        durability = Durability.FULL_AND_SENT if session is None else Durability.FULL
        return await self.call(durability, lambda transitions: self._define(transitions, definitions, session, age))

    def _define(self, transitions: Transitions, definitions: Sequence[Definition], session: bytes | None, age: float) -> list[bool]:
        if session is not None:
            sessions.living(transitions, session)
        return schedules.define(transitions, definitions, session, age)

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        envelopes = [firing.envelope for firing in firings if firing.envelope is not None]
        check_payloads(envelopes)
        durability = Durability.FULL_AND_NEW if envelopes else Durability.NORMAL
        return await self.call(durability, lambda transitions: schedules.fire(transitions, firings, self._store.limits.capacity))

    async def pending(self) -> Upgrade:
        return await self._alone(self._store, Transactions.pending)

    async def migrate(self) -> Upgrade:
        return await self._alone(replace(self._store, opening=replace(self._store.opening, migrates=True)), Transactions.migrate)

    async def sql(self) -> str:
        return script(await self.pending(), Statements(self._store.namespace), shared=self._store.shared)

    async def transactional(self) -> SqliteTransactional:
        # An open file is not opened again: the writer may wait for a lock that the caller holds.
        if not self._running().writer.is_open:
            await self.call(Durability.READ, lambda _: None)
        this = weakref.ref(self)  # callers keep the verbs for as long as the broker lives

        def writer() -> Writer:
            if (broker := this()) is None:
                raise BrokerUnavailable(wording.CLOSED)
            return broker._running().writer

        return SqliteTransactional(self._store, self._seams, self._rules, writer)

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
            await asyncio.to_thread(parts.close)  # waits for accepted verbs, and for the file to be closed

    async def call(self, durability: Durability, verb: Callable[[Transitions], T]) -> T:
        return await self._running().writer.call(durability, verb)

    async def _look_in_writer(self, verb: Callable[[Transitions], T]) -> T:
        """Run a read-only verb without the write lock. If a row must be repaired, run the verb again with the lock."""
        try:
            return await self.call(Durability.READ, verb)
        except NeedsRepair:
            return await self.call(Durability.NORMAL, verb)

    async def look(self, verb: Callable[[Transitions], T]) -> T:
        """Run a read-only verb in the reader's thread. If the reader cannot run it, the writer does."""
        parts = self._running()
        if parts.writer.is_open:  # otherwise the writer opens or migrates the file first
            with contextlib.suppress(CannotRead, NeedsRepair):
                return await parts.reader.call(Durability.READ, verb)
        return await self._look_in_writer(verb)

    async def _alone(self, store: StoreFile, verb: Callable[[Transactions], T]) -> T:
        """Run a migration without the writer, which would migrate the file on opening it."""

        def run() -> T:
            with forks.transactions:
                return verb(Transactions(store, self._seams.clock, self._rules, lambda *_: None))

        return await asyncio.to_thread(run)

    def _running(self) -> _ProcessParts:
        """Return this process's writer and listener. A forked child creates its own and does not touch its parent's."""
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        parts = self._parts
        if parts is None or parts.writer.pid != os.getpid():
            if parts is not None:
                parts.abandon()
            self._parts = parts = _ProcessParts(self._store, self._seams, self._rules)
            weakref.finalize(self, parts.close)
        return parts


class _ProcessParts:
    """Connects the writer, the notifier and the listener that a broker uses in one process."""

    def __init__(self, store: StoreFile, seams: Seams, rules: Rules) -> None:
        self._flag = WakeUpFlag()
        self._notifier = SocketNotifier(store, seams.clock)
        self._transactions = Transactions(store, seams.clock, rules, self._announce)
        self.writer = Writer(self._transactions, seams.start_thread)
        self._reads = ReadTransactions(store, seams.clock, rules)
        self.reader = Writer(self._reads, seams.start_thread, "reader")
        self.listener = SocketListener(store, self._flag, seams)

    def _announce(self, announcement: Announcement, transitions: Transitions) -> None:
        is_announced = self._notifier.announce(announcement, transitions) and self.listener.name is not None
        if not is_announced and self._flag.is_heard:
            self._flag.wake(announcement.topics())

    def close(self) -> None:
        if self.writer.pid == os.getpid():
            self.reader.close_and_wait()
            self.writer.close_and_wait()
            self._notifier.close()
            self.listener.close()

    def abandon(self) -> None:
        self._transactions.abandon()
        self._reads.abandon()
        self.listener.abandon()
