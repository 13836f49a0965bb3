"""Claims jobs as slots come free, and waits for a nudge when there are none."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.worker.holdings import Holdings
from taskflow.worker.queues import QueueChoice

# Nudges are hints and may be missed: look again after so many seconds without one.
LOOK_AGAIN: Final = 5.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0


class Fetcher:
    """One claim under way at a time, numbered: a claim whose answer was lost is asked again under its number."""

    def __init__(self, broker: Broker, session: bytes, queues: QueueChoice, holdings: Holdings, start: Callable[[Lease], None]) -> None:
        self._broker = broker
        self._session = session
        self._queues = queues
        self._holdings = holdings
        self._start = start
        self.request = 0

    async def run(self) -> None:
        with self._broker.listen(self._topics()) as nudges:
            while True:
                if not self._holdings.free:
                    await self._holdings.wait_for_change()
                    continue
                leases = await self._claim(self._queues.order(), self._holdings.free)
                for lease in leases:
                    self._start(lease)
                if leases:
                    await asyncio.sleep(0)
                else:
                    await nudges.wait(LOOK_AGAIN)

    async def _claim(self, queues: Sequence[str], limit: int) -> list[Lease]:
        number, pause = self.request + 1, FIRST_PAUSE
        while True:
            try:
                leases = await self._broker.claim(self._session, number, queues, limit)
            except BrokerUnavailable:
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.request = number
                return leases

    def _topics(self) -> list[str]:
        return [topics.queue(name) for name in self._queues.names] or [topics.ANY_QUEUE]
