"""The contract for brokers that can act inside a caller's transaction. Each clause has a name in brackets, with a conformance test of that
name that runs on every such broker: PostgreSQL and SQLite. The memory and Redis brokers cannot join another program's transaction.

The caller's connection must be to the store's own database. The statements run on that connection, in the caller's thread, and nothing
else is done to it: no commit, no rollback, no setting that outlives the transaction.

**enqueue** adds envelopes as `Broker.enqueue` does, but in the caller's transaction.
  [within_commit] Once the transaction commits, the jobs exist. A job with a key may be HELD until upkeep has admitted it.
  [within_rollback] If the transaction rolls back, the jobs never existed, for any operation.
  [within_savepoint] The same holds for a savepoint that is released or rolled back.
  [within_keys] Keys and `on_conflict` see the jobs that the transaction has added, and the jobs that already have a key. The answer may
    omit another client's job that was replaced, and the existing job that stands in for a throttled call. No envelope has DEBOUNCE.
  [within_store] A connection to another database or store gets WrongConnection. Nothing is added, and the transaction is not affected.
  [within_open_key] No call waits for an open transaction that has added a job with a key. Upkeep assigns the key after the commit, or
    cancels the job if another one has taken the key by then. (SQLite has one writer at a time, so no other call meets an open transaction.)
  [within_full] If the store has no room, StoreFull is raised. None of the call's jobs are added, and the transaction is not affected.
  [within_nudges] The commit nudges listeners as `Broker.enqueue` does, or those of `topics.DUE` if the engine has to admit a job first.

**settle** settles a run as SUCCEEDED in the caller's transaction, under the run's fence.
  [complete_commit] Once the transaction commits, the job has ended. A settlement by `Broker.settle` with the same fence is then answered
    COMMITTED, and changes nothing. The consequences for its key, for joined jobs and for its follow-ups' keys take effect with the next
    upkeep at the latest.
  [complete_rollback] After a rollback, the run is still leased, and a settlement by `Broker.settle` with the same fence takes effect.
  [complete_stale] If the lease is no longer valid, the answer is STALE. Nothing changes, and the transaction is not affected.
  [complete_open] While the transaction is open, no other operation waits for it: a settlement with the same fence is answered HELD_UP, and
    upkeep and the session's end leave the lease to a later call. (On SQLite, an open write transaction locks the whole store.)
  [complete_repeat] Settling again in the same transaction is answered OK, and changes nothing. In a later transaction, the answer is
    COMMITTED.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Dialect = Literal["postgresql", "sqlite"]

Purpose = Literal["enqueue", "settle"]
"""The operation that a connection is checked for. Each operation needs different rights."""

Row = Sequence[Any]


class Statement(NamedTuple):
    """A statement to run on the caller's connection. Its placeholders are `%s` on PostgreSQL and `?` on SQLite.

    A statement for PostgreSQL takes at most one text parameter, and returns one row with one text column, so that every driver can run it.
    """

    sql: str
    parameters: tuple[Any, ...] = ()


RunStatement = Callable[[Statement], Sequence[Row]]
"""Runs a statement on the caller's connection, and returns its rows."""


class CallersOperation(Protocol[T_co]):
    """An operation that has not run yet. Exactly one of its methods is called, once."""

    def run(self, run: RunStatement, /) -> T_co:
        """Run the operation's statements with `run`, and return its answer."""
        ...

    def steps(self) -> Generator[Statement, Sequence[Row], T_co]:
        """Yield the operation's statements one by one, for a connection used with `await`. The caller sends back the rows of each."""
        ...


class Transactional(Protocol):
    """Store operations that run in a caller's transaction.

    `dialect`  the kind of database that the connection must use
    `place`    the store's name, for messages
    """

    @property
    def dialect(self) -> Dialect: ...

    @property
    def place(self) -> str: ...

    def check(self, purpose: Purpose = "enqueue") -> CallersOperation[None]:
        """Return an operation that raises WrongConnection unless the connection is to this store and has the rights that `purpose` needs.
        A caller runs it before the first operation for that purpose on each connection. It must not make the transaction fail."""
        ...

    def enqueue(self, envelopes: Sequence[Envelope]) -> CallersOperation[list[Added | Refused]]: ...

    def settle(self, settlement: Settlement) -> CallersOperation[Settled]: ...


@runtime_checkable
class TransactionalBroker(Protocol):
    """A broker that can act in a caller's transaction."""

    async def transactional(self) -> Transactional:
        """Prepare the store, and return its reusable operations for callers' transactions. Raises BrokerRefused or BrokerUnavailable."""
        ...


def drive(steps: Generator[Statement, Sequence[Row], T], run: RunStatement) -> T:
    """Run the statements of an operation, and return its answer. If a statement fails, the operation gets the error, and may run further
    statements to undo its changes before it raises the error."""
    try:
        statement = next(steps)
        while True:
            try:
                rows = run(statement)
            except BaseException as error:
                statement = steps.throw(error)
            else:
                statement = steps.send(rows)
    except StopIteration as end:
        answer: T = end.value
        return answer
    finally:
        steps.close()
