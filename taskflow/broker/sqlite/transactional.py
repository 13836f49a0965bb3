"""The verbs in a transaction of the caller: see `taskflow.broker.transactional`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeVar, cast

from taskflow.broker.engine.enqueue import enqueue
from taskflow.broker.engine.job import claim_bytes, fence_bytes
from taskflow.broker.engine.seam import Operation
from taskflow.broker.engine.settle import complete
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.sqlite.callers_connection import CallersConnection, in_steps
from taskflow.broker.sqlite.commit_watch import IS_COMMITTED, ExpectedCommit
from taskflow.broker.sqlite.counts import Announcement
from taskflow.broker.sqlite.errors import check_payloads, check_settlements
from taskflow.broker.sqlite.statements import Statements, table_prefix
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.tables import upgrade_from, version_of
from taskflow.broker.sqlite.writer import Writer
from taskflow.broker.transactional import Dialect, Purpose, Row, RunStatement, Statement, Verb
from taskflow.model.clock import Seams, StartThread
from taskflow.model.envelope import Envelope
from taskflow.model.errors import WrongConnection
from taskflow.model.rules import Rules
from taskflow.model.stored_values import text
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")

_TAKE_WRITE_LOCK: Final = 'UPDATE "~meta" SET value = value WHERE FALSE'
_HAS_TABLE: Final = "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name = ?"
_LIBRARY: Final = "SELECT sqlite_source_id()"


@cache
def _our_library() -> str:
    with closing(sqlite3.connect(":memory:")) as connection:
        [(library,)] = connection.execute(_LIBRARY)
        return str(library)


class SqliteTransactional:
    """The verbs of one store. `writer` returns the broker's writer, or raises BrokerUnavailable if it is closed."""

    dialect: Dialect = "sqlite"

    def __init__(self, store: StoreFile, seams: Seams, rules: Rules, writer: Callable[[], Writer]) -> None:
        self._store = store
        self._seams = seams
        self._rules = rules
        self._writer = writer
        self._sql = Statements(store.namespace)

    @property
    def place(self) -> str:
        return self._store.path

    def check(self, purpose: Purpose = "enqueue") -> Verb[None]:
        return self._verb(self._check)

    def enqueue(self, envelopes: Sequence[Envelope]) -> Verb[list[Added | Refused]]:
        return self._verb(lambda connection: self._enqueue(connection, envelopes))

    def settle(self, settlement: Settlement) -> Verb[Settled]:
        return self._verb(lambda connection: self._settle(connection, settlement))

    def _verb(self, work: Callable[[CallersConnection], T]) -> Verb[T]:
        return _Verb(work, self._seams.start_thread)

    # --- the connection --------------------------------------------------------------------------------------------

    def _check(self, connection: CallersConnection) -> None:
        ours = self._store.path
        # These two read no file. If a transaction reads before it takes the lock, SQLite does not wait for other writers.
        files = {text(name): text(file or b"") for _, name, file in connection.execute("PRAGMA database_list")}
        [(library,)] = connection.execute(_LIBRARY)
        theirs = files.pop("main", "")
        if not self._is_ours(theirs):
            attached = next((name for name, file in files.items() if self._is_ours(file)), None)
            if attached is None:
                raise WrongConnection(
                    f"the connection is to {theirs or 'a database in memory'}, but the broker uses {ours}: nothing was sent; give a "
                    "connection to that file, or leave connection= out"
                )
            raise WrongConnection(
                f"{ours} is only attached to the connection, as {attached!r}: nothing was sent; open {ours} itself. A crash during a "
                "commit to two files can leave one of them without its changes."
            )
        if text(library) != _our_library():
            raise WrongConnection(
                f"the connection uses another copy of SQLite ({text(library)}) than the broker ({_our_library()}): nothing was sent; use "
                "Python's sqlite3, or a driver that uses it. Two copies in one process undo each other's locks."
            )
        try:
            connection.execute(self._sql[_TAKE_WRITE_LOCK])
        except Exception as error:
            [(is_there,)] = connection.execute(_HAS_TABLE, (table_prefix(self._store.namespace) + "meta",))
            if is_there:
                raise
            raise WrongConnection(
                f"the transaction does not see the tables of namespace {self._store.namespace!r} in {ours}: nothing was sent; roll it back "
                "and begin another, because they were created after it had begun"
            ) from error
        upgrade_from(version_of(cast("Any", connection), self._store, self._sql), self._store).refuse_unless(migrates=False)

    def _is_ours(self, file: str) -> bool:
        try:
            return os.path.samefile(file, self._store.path)
        except OSError:  # it has no name, or was removed
            return False

    # --- the verbs -------------------------------------------------------------------------------------------------

    def _enqueue(self, connection: CallersConnection, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        check_payloads(envelopes)
        writer = self._writer()
        announcement, answers = self._apply(connection, enqueue(envelopes, self._rules))
        added = next((answer.id for answer in answers if isinstance(answer, Added)), None)
        if added is not None:
            writer.expect(ExpectedCommit(announcement, added))
        return answers

    def _settle(self, connection: CallersConnection, settlement: Settlement) -> Settled:
        try:
            fence = fence_bytes(settlement.epoch, *claim_bytes(settlement.claim), is_committed=True)
        except OverflowError:  # no store could have issued it
            return Settled.STALE
        check_settlements([settlement])
        writer = self._writer()
        announcement, answer = self._apply(connection, complete(settlement, self._rules))
        if answer is not Settled.OK:
            return answer
        if announcement:
            writer.expect(ExpectedCommit(announcement, settlement.id, fence))
            return answer
        return Settled.COMMITTED if self._has_committed(settlement.id, fence) else answer

    def _has_committed(self, job_id: bytes, fence: bytes) -> bool:
        """Return True if other connections see that the run was settled in a transaction."""
        with closing(sqlite3.connect(self._store.uri("ro"), uri=True)) as connection:
            [(number,)] = connection.execute(self._sql[IS_COMMITTED], (job_id, fence))
        return bool(number)

    def _apply(self, connection: CallersConnection, operation: Operation[T]) -> tuple[Announcement, T]:
        """Run an operation on the caller's connection."""
        connection.execute(self._sql[_TAKE_WRITE_LOCK])
        with connection.savepoint() as their_connection:
            store = SqliteStore(their_connection, self._sql, self._seams.clock, self._store.limits)
            answer = store.drive(operation)
            store.flush()
        return store.take_announcement(), answer


@dataclass(frozen=True)
class _Verb(Generic[T]):
    work: Callable[[CallersConnection], T]
    start_thread: StartThread

    def run(self, run: RunStatement, /) -> T:
        return self.work(CallersConnection(run))

    def steps(self) -> Generator[Statement, Sequence[Row], T]:
        return in_steps(self.run, self.start_thread)
