"""Tells the broker what came of each lease, in as few round trips as the moment allows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

import msgspec

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError
from taskflow.model.verdict import Failed, HandedBack, RunError, Settled, Settlement
from taskflow.worker.events import BrokerBack, BrokerTrouble, Events, NotCounted, Unwritable
from taskflow.worker.holdings import Holding, Holdings

MAX_BATCH: Final = 500
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
UNWRITABLE: Final = "taskflow.VerdictNotWritable"


class Settler:
    """Group commit without a timer: what comes while a batch is under way gathers into the next.

    A settlement is offered until the store has answered it or its lease is lost: it is worse to lose a job than to run it twice.
    `waiting_since` is since when no batch has been answered although one is to be, of the monotonic clock; None when nothing waits.
    """

    def __init__(self, broker: Broker, holdings: Holdings, events: Events) -> None:
        self._broker = broker
        self._holdings = holdings
        self._events = events
        self._troubles = 0
        self._inbox: deque[Settlement] = deque()
        self._arrived = asyncio.Event()
        self.waiting_since: float | None = None

    def offer(self, holding: Holding, settlement: Settlement) -> None:
        """Settle it; what was lost meanwhile is only told of, since the store would answer STALE."""
        if self._holdings.get(settlement.claim) is not holding:
            self._tell_stale(holding.lease, settlement)
            return
        holding.is_offered = True
        if not self._inbox:  # else it has been told, or will look again
            self._arrived.set()
        self._inbox.append(settlement)

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._inbox:
                batch = self._take()
                try:
                    await self._settle(batch)
                except asyncio.CancelledError:  # not always the end: see Life. What had been settled is not taken again.
                    self._inbox.extendleft(reversed(batch))
                    self._arrived.set()
                    raise
            self.waiting_since = None  # what waited may have been lost meanwhile

    def _take(self) -> list[Settlement]:
        """What is still ours to settle: a lease that was lost meanwhile has left the holdings."""
        taken = [self._inbox.popleft() for _ in range(min(MAX_BATCH, len(self._inbox)))]
        return [settlement for settlement in taken if self._holdings.get(settlement.claim) is not None]

    async def _settle(self, batch: list[Settlement]) -> None:
        if not batch:
            return
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        try:
            answers = await self._broker.settle(batch)
        except BrokerError as error:
            await self._offer_again(batch, error)
            return
        except Exception as error:
            await self._settle_apart(batch, error)
            return
        self.waiting_since = None
        if self._troubles:
            self._troubles = 0
            self._events.tell(BrokerBack("settling"))
        for settlement, answer in zip(batch, answers, strict=True):
            if answer is Settled.STALE and (holding := self._holdings.get(settlement.claim)) is not None:
                self._tell_stale(holding.lease, settlement)
        self._holdings.remove_all([settlement.claim for settlement in batch])

    def _tell_stale(self, lease: Lease, settlement: Settlement) -> None:
        if not isinstance(settlement.verdict, HandedBack):  # whoever has the job now has it back already
            self._events.tell(NotCounted(lease, settlement.verdict))

    async def _offer_again(self, batch: list[Settlement], error: Exception) -> None:
        self._inbox.extendleft(reversed(batch))
        self._troubles += 1
        self._events.tell(BrokerTrouble("settling", str(error), self._troubles))
        await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._troubles, 10)))

    async def _settle_apart(self, batch: list[Settlement], error: Exception) -> None:
        """Something in the batch cannot be written. It must not stand in the way of its neighbours: it alone fails, and says why."""
        if len(batch) > 1:
            for settlement in batch:
                await self._settle([settlement])
            return
        [unwritable] = batch
        if isinstance(unwritable.verdict, Failed) and unwritable.verdict.error.type == UNWRITABLE:
            await self._offer_again(batch, error)
            return
        why = RunError.trimmed(
            UNWRITABLE, f"its verdict {type(unwritable.verdict).__name__} cannot be written: {type(error).__name__}: {error}"
        )
        if (holding := self._holdings.get(unwritable.claim)) is not None:
            self._events.tell(Unwritable(holding.lease, unwritable.verdict, Failed(why)))
        await self._settle([msgspec.structs.replace(unwritable, verdict=Failed(why), follow_ups=())])
