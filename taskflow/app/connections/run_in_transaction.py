"""Runs an operation of the store on a caller's connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from taskflow.app.app import App
from taskflow.app.connections.adapters import AwaitedAdapter, ConnectionAdapter, RunSyncAdapter, SyncAdapter, adapter_class
from taskflow.app.portal import block_on
from taskflow.broker.transactional import CallersOperation, Purpose, Transactional, TransactionalBroker
from taskflow.model.errors import ConfigurationError, WrongConnection

T = TypeVar("T")

MakeOperation = Callable[[Transactional], CallersOperation[T]]


async def run_in_transaction(app: App, connection: object, purpose: Purpose, make: MakeOperation[T]) -> T:
    """Run the operation that `make` returns for the store, on the connection, in the caller's task. `purpose` says what the operation does,
    and so which rights the connection's role needs.

    Raises TypeError for an object that is not a connection. Raises WrongConnection if the connection is closed, isn't in a transaction, or
    leads to another database, and ConfigurationError if the broker has no transactions. The driver's errors aren't translated.
    """
    adapter, broker = adapter_class(connection)(connection), _broker(app, purpose)
    if (store := _stores.get(broker)) is None:
        _stores[broker] = store = await broker.transactional()
    if isinstance(adapter, RunSyncAdapter):
        return await adapter.run_sync(lambda below: _run(below, store, purpose, make))
    if isinstance(adapter, SyncAdapter):
        return _run(adapter, store, purpose, make)
    assert isinstance(adapter, AwaitedAdapter)
    _check_dialect(adapter, store)
    adapter.check_open()
    with _forgetting(store):
        if not _is_checked(adapter, store, purpose):
            await _await_steps(adapter, store.check(purpose))
            _record_checked(adapter, store, purpose)
        return await _await_steps(adapter, make(store))


def run_in_transaction_sync(app: App, connection: object, purpose: Purpose, make: MakeOperation[T]) -> T:
    """Like `run_in_transaction`, for a connection that is used without `await`: see `ConnectionAdapter.is_awaited`."""
    adapter, broker = adapter_class(connection)(connection), _broker(app, purpose)
    assert isinstance(adapter, SyncAdapter)
    if (store := _stores.get(broker)) is None:
        _stores[broker] = store = block_on(broker.transactional())
    return _run(adapter, store, purpose, make)


def _run(adapter: SyncAdapter, store: Transactional, purpose: Purpose, make: MakeOperation[T]) -> T:
    _check_dialect(adapter, store)
    adapter.check_open()
    with _forgetting(store):
        if not _is_checked(adapter, store, purpose):
            store.check(purpose).run(adapter.run)
            _record_checked(adapter, store, purpose)
        adapter.begin()
        return make(store).run(adapter.run)


async def _await_steps(adapter: AwaitedAdapter, operation: CallersOperation[T]) -> T:
    steps = operation.steps()
    try:
        statement = next(steps)
        while True:
            try:
                rows = await adapter.run_awaited(statement)
            except BaseException as error:
                statement = steps.throw(error)
            else:
                statement = steps.send(rows)
    except StopIteration as end:
        answer: T = end.value
        return answer
    finally:
        steps.close()


def _broker(app: App, purpose: Purpose) -> TransactionalBroker:
    broker = app.broker()
    if isinstance(broker, TransactionalBroker):
        return broker
    what, instead = (
        ("connection=", "leave out connection=") if purpose == "enqueue" else ("complete_in()", "return the result from the job")
    )
    raise ConfigurationError(
        f"{what} needs a broker in the same database, PostgreSQL or SQLite, but this broker is {broker!r}: {instead}, or "
        "configure another broker"
    )


def _check_dialect(adapter: ConnectionAdapter, store: Transactional) -> None:
    if adapter.dialect is not None and adapter.dialect != store.dialect:
        names = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
        raise WrongConnection(
            f"the connection is to a {names[adapter.dialect]} database, but the broker is {names[store.dialect]}, {store.place}: use a "
            "connection to the broker's database"
        )


# --- stores, and connections that have been checked already ---------------------------------------------------------

_stores: Final = WeakKeyDictionary[TransactionalBroker, Transactional]()


@contextmanager
def _forgetting(store: Transactional) -> Iterator[None]:
    """Forget the store if a connection is refused: the connection may lead to a different store that has replaced this one."""
    try:
        yield
    except WrongConnection:
        for broker in [broker for broker, known in _stores.items() if known is store]:
            _stores.pop(broker, None)
        raise


_checked: Final = WeakKeyDictionary[Any, set[tuple[Transactional, Purpose]]]()


def _is_checked(adapter: ConnectionAdapter, store: Transactional, purpose: Purpose) -> bool:
    try:
        return (store, purpose) in _checked.get(adapter.driver, ())
    except TypeError:  # sqlite3's connections cannot be referenced weakly, but their check is cheap
        return False


def _record_checked(adapter: ConnectionAdapter, store: Transactional, purpose: Purpose) -> None:
    with suppress(TypeError):
        _checked.setdefault(adapter.driver, set()).add((store, purpose))
