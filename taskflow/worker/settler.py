"""Sends verdicts to the broker, in as few round trips as possible."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from taskflow.app.events import Event, Events
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerError
from taskflow.model.ids import id_text
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.verdict import Completed, Failed, HandedBack, RunError, Settled, Settlement
from taskflow.worker import events
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.run_errors import follow_ups_of

log: Final = logging.getLogger("taskflow")

MAX_BATCH: Final = 500
PAUSES: Final = Pauses(0.05, 2.0)
HELD_UP_PAUSE: Final = 1.0
UNWRITABLE: Final = "taskflow.VerdictNotWritable"


SettledHook = Callable[[Sequence[HeldLease | None], Sequence[Settlement], Sequence[Settled]], None]
"""Called once for each batch that the store has answered, with the leases (None for a lost one), the settlements and the answers."""


class Settler:
    """Sends settlements in batches, without a timer: those that arrive while a batch is under way form the next batch.

    A settlement is retried until the store has answered it or its lease is lost. If another program's transaction blocks it, `run_held_up`
    offers it again separately from the others. `waiting_since` is when the unanswered batch was sent, on the monotonic clock, or None."""

    def __init__(self, broker: Broker, lease_table: LeaseTable, events: Events, hooks: Sequence[SettledHook] = ()) -> None:
        self._broker = broker
        self._lease_table = lease_table
        self._events = events
        self._hooks = hooks
        self._retries = Retries(PAUSES)
        self._inbox: deque[Settlement] = deque()
        self._held_up: deque[Settlement] = deque()
        self._some_are_held_up = asyncio.Event()
        self._arrived = asyncio.Event()
        self.waiting_since: float | None = None

    def offer(self, holding: HeldLease, settlement: Settlement) -> None:
        """Queue the settlement. If its lease was lost, only send an event, because the store would answer STALE."""
        if not self._lease_table.holds(holding):
            self._report_stale(holding.lease, settlement)
            return
        holding.is_offered = True
        if not self._inbox:  # otherwise `run` has been woken, or will check again
            self._arrived.set()
        self._inbox.append(settlement)

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._inbox:
                await self._settle_some(self._inbox)
            self.waiting_since = None  # the waiting settlements may have been lost meanwhile

    async def run_held_up(self) -> None:
        while True:
            await self._some_are_held_up.wait()
            await asyncio.sleep(HELD_UP_PAUSE)
            self._some_are_held_up.clear()
            await self._settle_some(self._held_up)
            if self._held_up:
                self._some_are_held_up.set()

    async def _settle_some(self, waiting: deque[Settlement]) -> None:
        taken = [waiting.popleft() for _ in range(min(MAX_BATCH, len(waiting)))]
        batch = [settlement for settlement in taken if self._lease_table.get(settlement.claim) is not None]  # the others were lost
        try:
            await self._settle(batch)
        except BaseException:  # this service may restart (see `Services`); it drops settlements that have been answered
            self._put_back(batch)
            raise

    def _put_back(self, batch: list[Settlement]) -> None:
        self._inbox.extendleft(reversed(batch))
        self._arrived.set()

    async def _settle(self, batch: list[Settlement]) -> None:
        if not batch:
            return
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        try:
            answers = await self._broker.settle(batch)
        except BrokerError as error:
            self._put_back(batch)
            pause = self._retries.failed()
            self._events.emit(events.BrokerCallFailed("settling", str(error), self._retries.failures))
            await asyncio.sleep(pause)
            return
        except Exception as error:
            await self._settle_apart(batch, error)
            return
        self.waiting_since = None
        if self._retries.failures:
            self._retries.succeeded()
            self._events.emit(events.BrokerRecovered("settling"))
        if self._hooks:
            holdings = [self._lease_table.get(settlement.claim) for settlement in batch]
            for hook in self._hooks:
                hook(holdings, batch, answers)
        if answers.count(Settled.OK) < len(answers) or any(type(settlement.verdict) is Completed for settlement in batch):
            batch = self._without_held_up(batch, answers)
        self._lease_table.remove([settlement.claim for settlement in batch])

    def _without_held_up(self, batch: list[Settlement], answers: list[Settled]) -> list[Settlement]:
        """Return the settlements that have a final answer, and set the others aside."""
        answered: list[Settlement] = []
        for settlement, answer in zip(batch, answers, strict=True):
            holding = self._lease_table.get(settlement.claim)
            if answer is Settled.HELD_UP:
                if holding is not None:
                    self._set_aside(settlement, events.SettlementBlocked(holding.lease))
                continue
            if answer is Settled.STALE and holding is not None:
                self._report_stale(holding.lease, settlement)
            elif answer is Settled.OK and holding is not None and isinstance(settlement.verdict, Completed):
                self._events.emit(events.CompletionRolledBack(holding.lease, settlement.verdict, settlement.verdict.otherwise))
            answered.append(settlement)
        return answered

    def _set_aside(self, settlement: Settlement, event: Event) -> None:
        """Queue the settlement separately from the others. Send the event only the first time."""
        if (holding := self._lease_table.get(settlement.claim)) is not None:
            if not holding.is_held_up:
                self._events.emit(event)
            holding.is_held_up = True
            self._held_up.append(settlement)
            self._some_are_held_up.set()

    def _report_stale(self, lease: Lease, settlement: Settlement) -> None:
        if not isinstance(settlement.verdict, HandedBack):  # for a hand-back it makes no difference: the job is already elsewhere
            self._events.emit(events.VerdictIgnored(lease, settlement.verdict))

    async def _settle_apart(self, batch: list[Settlement], error: Exception) -> None:
        """Settle the jobs separately, because one of them cannot be written. Try that one without its progress, then as failed, then
        without its `on_failure` call. If nothing helps, set it aside."""
        if len(batch) > 1:
            for settlement in batch:
                await self._settle([settlement])
            return
        [unwritable] = batch
        if unwritable.progress is not None:  # perhaps only the progress is unwritable, which is no reason to fail the job
            await self._settle([msgspec.structs.replace(unwritable, progress=None)])
            return
        if isinstance(unwritable.verdict, Failed) and unwritable.verdict.error.type == UNWRITABLE:
            if unwritable.follow_ups:
                log.error("job %s failed, but its on_failure call cannot be written, and is not sent: %s", id_text(unwritable.id), error)
                await self._settle([msgspec.structs.replace(unwritable, follow_ups=())])
                return
            self._set_aside(unwritable, events.BrokerCallFailed("settling", f"{type(error).__name__}: {error}", 1))
            return
        why = RunError(UNWRITABLE, f"its verdict {type(unwritable.verdict).__name__} cannot be written: {type(error).__name__}: {error}")
        follow_ups: tuple[Envelope, ...] = ()
        if (holding := self._lease_table.get(unwritable.claim)) is not None:
            self._events.emit(events.VerdictRejected(holding.lease, unwritable.verdict, Failed(why)))
            follow_ups = follow_ups_of(holding.lease, Failed(why))
        await self._settle([msgspec.structs.replace(unwritable, verdict=Failed(why), follow_ups=follow_ups)])
