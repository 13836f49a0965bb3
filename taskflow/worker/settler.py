"""Tells the broker what came of each lease, in as few round trips as the moment allows."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerUnavailable, StoreFull
from taskflow.model.verdict import Settlement
from taskflow.worker.holdings import Holdings

MAX_BATCH: Final = 500
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0


class Settler:
    """Group commit without a timer: what comes while a batch is under way gathers into the next.

    A settlement is offered until the store has answered it or its lease is lost: it is worse to lose a job than to run it twice.
    """

    def __init__(self, broker: Broker, holdings: Holdings) -> None:
        self._broker = broker
        self._holdings = holdings
        self._inbox: deque[Settlement] = deque()
        self._arrived = asyncio.Event()
        self._pause = 0.0

    def offer(self, settlement: Settlement) -> None:
        self._inbox.append(settlement)
        self._arrived.set()

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._inbox:
                await self._settle(self._take())

    def _take(self) -> list[Settlement]:
        """What is still ours to settle: a lease that was lost meanwhile has left the holdings."""
        batch: list[Settlement] = []
        while self._inbox and len(batch) < MAX_BATCH:
            settlement = self._inbox.popleft()
            if self._holdings.get(settlement.claim) is not None:
                batch.append(settlement)
        return batch

    async def _settle(self, batch: list[Settlement]) -> None:
        if not batch:
            return
        try:
            await self._broker.settle(batch)
        except (BrokerUnavailable, StoreFull):
            self._inbox.extendleft(reversed(batch))
            self._pause = min(LONGEST_PAUSE, 2 * self._pause or FIRST_PAUSE)
            await asyncio.sleep(self._pause)
            return
        self._pause = 0.0
        for settlement in batch:
            self._holdings.remove(settlement.claim)
