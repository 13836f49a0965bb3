"""Runs the broker's own code on a caller's connection, of which only `run(statement)` is known."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar, cast

from taskflow.broker.transactional import Row, RunStatement, Statement
from taskflow.model.clock import StartThread
from taskflow.model.errors import WrongConnection

T = TypeVar("T")

_STORED: Final = frozenset({int, float, str, bytes, type(None)})
"""The types of the values that SQLite stores."""


class CallersConnection:
    """The part of `sqlite3.Connection` that verbs use, on the caller's connection."""

    def __init__(self, run: RunStatement) -> None:
        self._run = run

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> _Result:
        try:
            rows = self._run(Statement(sql, tuple(parameters)))
        except Exception as error:
            cause = _of_sqlite(error)
            if isinstance(cause, sqlite3.IntegrityError):  # verbs expect some of these
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
        """Yield this connection. If the `with` block raises, undo what it has changed, and nothing else of the transaction."""
        self.execute("SAVEPOINT taskflow")
        try:
            yield cast("sqlite3.Connection", self)  # for verbs, it is one
            self.execute("RELEASE taskflow")
        except BaseException:
            with suppress(Exception):  # after a serious error, SQLite has rolled back the whole transaction
                self.execute("ROLLBACK TO taskflow")
                self.execute("RELEASE taskflow")
            raise


class _Result:
    """The part of `sqlite3.Cursor` that verbs use."""

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
        """The number of rows that the statement has changed. No other statement may run in between."""
        return self._connection.number("SELECT changes()")


def _plain(row: Row) -> tuple[Any, ...]:
    """Return a row as a tuple. Raises WrongConnection if the connection has converted its values: they would be stored like that."""
    values = tuple(row)
    for value in values:
        if type(value) not in _STORED:
            raise WrongConnection(
                f"the connection converts stored values to {type(value).__qualname__}, so taskflow cannot read its tables: give a "
                "connection without converters for INTEGER, TEXT and BLOB columns"
            )
    return values


def _of_sqlite(error: BaseException) -> sqlite3.Error | None:
    """Return the error of sqlite3 that a driver's own error wraps, if it is not one itself."""
    found: list[object] = [error, getattr(error, "orig", None), error.__cause__]
    return next((each for each in found if isinstance(each, sqlite3.Error)), None)


def _explain(error: BaseException, cause: sqlite3.Error | None) -> None:
    """Add a note to an error of the caller's driver, which is raised unchanged."""
    if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        error.add_note(
            "This transaction has read, and another connection has written since, so SQLite does not let it write any more. "
            "Roll it back, and begin it with BEGIN IMMEDIATE."
        )


# --- for connections that are used with `await` ---------------------------------------------------------------------


class _Abandoned(BaseException):
    """Raised in the helper thread if no one waits for the verb any more."""


def in_steps(work: Callable[[RunStatement], T], start_thread: StartThread) -> Generator[Statement, Sequence[Row], T]:
    """Yield the statements that `work` runs, one by one, and return its answer.

    `work` runs in a thread, because it waits for the rows of each statement in the middle of ordinary code. It runs only while this
    generator is being resumed. Closing the generator ends it.
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
            except BaseException as error:  # also a cancellation: the verb then undoes itself, by further statements
                rows_or_error.put(error)
        return step.result()
    finally:
        for _ in range(2):  # for the statement that it runs, and for the one with which it would undo the verb
            rows_or_error.put(_Abandoned())
        thread.join()
