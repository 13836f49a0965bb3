"""Completes a run in a transaction of its function: see `JobContext.complete_in`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import cast

from taskflow.app.app import App
from taskflow.app.connections.adapters import is_awaited
from taskflow.app.connections.run_in_transaction import run_in_transaction, run_in_transaction_sync
from taskflow.app.context import DONE
from taskflow.model.errors import BrokerUnavailable, LeaseLost, TaskflowError
from taskflow.model.verdict import Settled, Settlement, Succeeded
from taskflow.worker.lease_table import HeldLease


class Completion:
    """Settles a run on a connection of its function. The lease keeps the result even before the statement is sent, because
    a call that was cancelled may have had its effect."""

    def __init__(self, app: App, holding: HeldLease, settlement: Settlement) -> None:
        if holding.is_offered:
            raise TaskflowError("complete_in() was called after the run had ended")
        self._app = app
        self._holding = holding
        self._settlement = settlement

    def on(self, connection: object) -> Awaitable[None]:
        """Settle at once if the connection is synchronous, and otherwise in the coroutine that is returned."""
        if is_awaited(connection):
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                raise TypeError(
                    f"a {type(connection).__name__} is used with `await`, but a plain function runs without an event loop: make the job "
                    "an async function, or use a synchronous connection"
                ) from None
            return self._on_awaited(connection)
        with self._noted():
            self._check(run_in_transaction_sync(self._app, connection, "settle", lambda store: store.settle(self._settlement)))
        return DONE

    async def _on_awaited(self, connection: object) -> None:
        with self._noted():
            self._check(await run_in_transaction(self._app, connection, "settle", lambda store: store.settle(self._settlement)))

    @contextmanager
    def _noted(self) -> Iterator[None]:
        before = self._holding.completed
        self._holding.completed = cast(Succeeded, self._settlement.verdict).result
        try:
            yield
        except TaskflowError:  # nothing has been settled
            self._holding.completed = before
            raise

    def _check(self, answer: Settled) -> None:
        if answer is Settled.HELD_UP:
            raise BrokerUnavailable(
                "complete_in(): another open transaction has locked the job or its key: find it in pg_stat_activity (state 'idle in "
                "transaction'), and end it"
            )
        if answer is Settled.COMMITTED:
            raise TaskflowError(
                "complete_in() was called in a second transaction, but the first one has committed, and the job has ended: call it once, "
                "in the last transaction of the job"
            )
        if answer is not Settled.OK:
            raise LeaseLost("complete_in(): the run no longer holds its job, which runs elsewhere or has ended; roll the transaction back")
