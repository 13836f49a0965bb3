"""The operations in a caller's transaction: see `taskflow.broker.transactional`.

They run the broker's own code on a connection that offers only `run(statement)`.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeVar, cast

from taskflow.broker.engine.job import claim_bytes, fence_bytes
from taskflow.broker.engine.jobs import complete, enqueue
from taskflow.broker.engine.seam import Operation
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.sqlite.counts import Announcement
from taskflow.broker.sqlite.statements import Statements, table_prefix
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.broker.sqlite.tables import check_tables
from taskflow.broker.sqlite.transactions import IS_COMMITTED, ExpectedCommit
from taskflow.broker.sqlite.writer import Writer
from taskflow.broker.transactional import CallersOperation, Dialect, Purpose, Row, RunStatement, Statement
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
    """The operations of one store. `writer` returns the broker's writer, or raises BrokerUnavailable if the broker is closed."""

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

    def check(self, purpose: Purpose = "enqueue") -> CallersOperation[None]:
        return self._operation(self._check)

    def enqueue(self, envelopes: Sequence[Envelope]) -> CallersOperation[list[Added | Refused]]:
        return self._operation(lambda connection: self._enqueue(connection, envelopes))

    def settle(self, settlement: Settlement) -> CallersOperation[Settled]:
        return self._operation(lambda connection: self._settle(connection, settlement))

    def _operation(self, work: Callable[[CallersConnection], T]) -> CallersOperation[T]:
        return _SqliteOperation(work, self._seams.start_thread)

    # --- the connection --------------------------------------------------------------------------------------------

    def _check(self, connection: CallersConnection) -> None:
        ours = self._store.path
        # These two statements read no file. If a transaction reads before it takes the lock, SQLite does not wait for other writers.
        files = {text(name): text(file or b"") for _, name, file in connection.execute("PRAGMA database_list")}
        [(library,)] = connection.execute(_LIBRARY)
        theirs = files.pop("main", "")
        if not self._is_ours(theirs):
            attached = next((name for name, file in files.items() if self._is_ours(file)), None)
            if attached is None:
                raise WrongConnection(
                    f"the connection is to {theirs or 'a database in memory'}, but the broker uses {ours}: nothing was sent; use a "
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
                f"the transaction does not see the tables of namespace {self._store.namespace!r} in {ours}, because they were created "
                "after it began: nothing was sent; roll it back and begin another"
            ) from error
        check_tables(cast("Any", connection), self._store, self._sql).refuse_unless(migrates=False)

    def _is_ours(self, file: str) -> bool:
        try:
            return os.path.samefile(file, self._store.path)
        except OSError:  # the file has no name, or was removed
            return False

    # --- the operations -------------------------------------------------------------------------------------------------

    def _enqueue(self, connection: CallersConnection, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
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
        """Run an operation in a savepoint of the caller's transaction. Return what to announce after the commit, and the answer."""
        connection.execute(self._sql[_TAKE_WRITE_LOCK])
        with connection.savepoint() as their_connection:
            store = SqliteStore(their_connection, self._sql, self._seams.clock, self._store.capacity)
            answer = store.drive(operation)
            store.flush()
        return store.take_announcement(), answer


@dataclass(frozen=True)
class _SqliteOperation(Generic[T]):
    work: Callable[[CallersConnection], T]
    start_thread: StartThread

    def run(self, run: RunStatement, /) -> T:
        return self.work(CallersConnection(run))

    def steps(self) -> Generator[Statement, Sequence[Row], T]:
        return in_steps(self.run, self.start_thread)


# --- the connection --------------------------------------------------------------------------------------------

_STORED: Final = frozenset({int, float, str, bytes, type(None)})
"""The types of the values that SQLite stores."""


class CallersConnection:
    """Offers the part of `sqlite3.Connection` that operations use, and runs their statements on the caller's connection."""

    def __init__(self, run: RunStatement) -> None:
        self._run = run

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> _Result:
        try:
            rows = self._run(Statement(sql, tuple(parameters)))
        except Exception as error:
            cause = _of_sqlite(error)
            if isinstance(cause, sqlite3.IntegrityError):  # some operations expect and handle these
                raise cause from None
            _explain(error, cause)
            raise
        return _Result(self, [_plain(row) for row in rows])

    @property
    def total_changes(self) -> int:
        return self.number("SELECT total_changes()")

    def number(self, sql: str) -> int:
        [(number,)] = self.execute(sql)
        return int(number)

    @contextmanager
    def savepoint(self) -> Iterator[sqlite3.Connection]:
        """Yield this connection. If the `with` block raises, undo its changes, but nothing else in the transaction."""
        self.execute("SAVEPOINT taskflow")
        try:
            yield cast("sqlite3.Connection", self)  # it has the methods that operations use
            self.execute("RELEASE taskflow")
        except BaseException:
            with suppress(Exception):  # after a serious error, SQLite has rolled back the whole transaction
                self.execute("ROLLBACK TO taskflow")
                self.execute("RELEASE taskflow")
            raise


class _Result:
    """The part of `sqlite3.Cursor` that operations use."""

    def __init__(self, connection: CallersConnection, rows: list[tuple[Any, ...]]) -> None:
        self._connection = connection
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._rows)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement changed. Read this before the next statement runs."""
        return self._connection.number("SELECT changes()")


def _plain(row: Row) -> tuple[Any, ...]:
    """Return a row as a tuple. Raises WrongConnection if the connection has converted values, which would be stored in that form."""
    values = tuple(row)
    for value in values:
        if type(value) not in _STORED:
            raise WrongConnection(
                f"the connection converts stored values to {type(value).__qualname__}, so taskflow cannot read its own tables: use "
                "a connection without converters for INTEGER, TEXT and BLOB columns"
            )
    return values


def _of_sqlite(error: BaseException) -> sqlite3.Error | None:
    """Return the error if it's one of sqlite3's, else the sqlite3 error that it wraps, or None."""
    found: list[object] = [error, getattr(error, "orig", None), error.__cause__]
    return next((each for each in found if isinstance(each, sqlite3.Error)), None)


def _explain(error: BaseException, cause: sqlite3.Error | None) -> None:
    """If the transaction can't write because it has read an older state, add a note with the remedy to the driver's error."""
    if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        error.add_note(
            "This transaction has read, and another connection has written since, so SQLite no longer lets this one write. "
            "Roll it back, and begin it with BEGIN IMMEDIATE."
        )


# --- for connections that are used with `await` ---------------------------------------------------------------------


class _Abandoned(BaseException):
    """Raised in the helper thread if the caller no longer waits for the operation."""


def in_steps(work: Callable[[RunStatement], T], start_thread: StartThread) -> Generator[Statement, Sequence[Row], T]:
    """Yield the statements that `work` runs, one by one, and return its answer.

    `work` runs in a thread, because it waits for the rows of each statement in the middle of ordinary code. `work` runs only while this
    generator is being resumed. Closing the generator ends `work`.
    """
    handed_over = queue.SimpleQueue[Statement | Future[T]]()
    rows_or_error = queue.SimpleQueue[Sequence[Row] | BaseException]()

    def run(statement: Statement) -> Sequence[Row]:
        handed_over.put(statement)
        got = rows_or_error.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def work_here() -> None:
        outcome = Future[T]()
        try:
            outcome.set_result(work(run))
        except BaseException as error:  # the caller raises it
            outcome.set_exception(error)
        handed_over.put(outcome)

    thread: threading.Thread = start_thread(work_here, "taskflow-sqlite-statements")
    try:
        while not isinstance(step := handed_over.get(), Future):
            try:
                rows_or_error.put((yield step))
            except GeneratorExit:
                raise
            except BaseException as error:  # this includes a cancellation: the operation then undoes itself with further statements
                rows_or_error.put(error)
        return step.result()
    finally:
        for _ in range(2):  # once for the statement that `work` awaits, and once for the one that would undo the operation
            rows_or_error.put(_Abandoned())
        thread.join()
