"""A program's own connection to a store's database, and its transactions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.transactional import CallersOperation, Row, Statement, Transactional, TransactionalBroker, drive
from taskflow.model.envelope import Envelope
from taskflow.model.verdict import Settled, Settlement
from tests.support.harnesses import Capability
from tests.support.world import World

T = TypeVar("T")


class Caller:
    """A DB-API connection in autocommit mode, which begins and ends its transactions by statements. Operations run by `run` and by `steps`
    in turn."""

    def __init__(self, connection: Any, store: Transactional) -> None:
        self.connection = connection
        self.store = store
        self._is_in_steps = itertools.cycle((False, True))

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        cursor = self.connection.cursor()
        try:
            cursor.execute(sql, parameters)
            return [] if cursor.description is None else cursor.fetchall()
        finally:
            cursor.close()

    def do(self, operation: CallersOperation[T]) -> T:
        return drive(operation.steps(), self._run) if next(self._is_in_steps) else operation.run(self._run)

    def _run(self, statement: Statement) -> Sequence[Row]:
        return self.execute(statement.sql, statement.parameters)

    def check(self) -> None:
        self.do(self.store.check())

    def enqueue(self, *envelopes: Envelope) -> list[Added | Refused]:
        return self.do(self.store.enqueue(envelopes))

    def settle(self, settlement: Settlement) -> Settled:
        return self.do(self.store.settle(settlement))

    # --- transactions ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction, and check the connection as the first operation on it does."""
        self.execute("BEGIN")
        self.check()

    def commit(self) -> None:
        self.execute("COMMIT")

    def roll_back(self) -> None:
        self.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end of the `with` block; roll back if it raises."""
        self.begin()
        try:
            yield
        except BaseException:
            self.roll_back()
            raise
        self.commit()

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


A_NOTE: Final = 4_711


@contextmanager
def unaffected(caller: Caller) -> Iterator[None]:
    """Check that what the transaction wrote before the `with` block is still there after it, and that it can write more."""
    caller.execute("CREATE TEMPORARY TABLE notes (number integer)")
    caller.execute(f"INSERT INTO notes VALUES ({A_NOTE})")
    yield
    caller.execute(f"INSERT INTO notes VALUES ({A_NOTE + 1})")
    assert [tuple(row) for row in caller.execute("SELECT number FROM notes ORDER BY number")] == [(A_NOTE,), (A_NOTE + 1,)]


async def a_caller(world: World) -> Caller:
    """Return a program's connection to the store's database. Close it, or use it in a `with` statement."""
    world.needs(Capability.TRANSACTIONS)
    assert isinstance(world.broker, TransactionalBroker)
    return Caller(world.harness.connect(), await world.broker.transactional())
