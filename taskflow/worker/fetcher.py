"""Claims jobs as slots come free, and waits for a nudge when there are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from taskflow.broker import topics
from taskflow.broker.nudges import Nudges
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError, SessionLost
from taskflow.model.seams import Chance
from taskflow.worker.events import BrokerBack, BrokerTrouble, Events
from taskflow.worker.holdings import Holdings
from taskflow.worker.queues import QueueChoice

# Nudges are hints and may be missed: look again after so many seconds without one.
LOOK_AGAIN: Final = 5.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0


@dataclass(frozen=True)
class Hands:
    """Where a claim's leases go.

    `start` takes one to its run; `give_back` takes one whose answer came later than `too_old` seconds after it was asked for;
    `on_lost` hears that the session is dead.
    """

    start: Callable[[Lease], None]
    give_back: Callable[[Lease], None]
    too_old: float
    on_lost: Callable[[str], None]


class Fetcher:
    """One claim under way at a time, numbered: a claim whose answer was lost is asked again under its number.

    `answered_at` is when one was answered last, of the monotonic clock, None before the first.
    """

    def __init__(
        self, broker: Broker, session: bytes, queues: QueueChoice, holdings: Holdings, events: Events, hands: Hands, chance: Chance
    ) -> None:
        self._broker = broker
        self._session = session
        self._queues = queues
        self._holdings = holdings
        self._events = events
        self._hands = hands
        self._chance = chance
        self.request = 0
        self.answered_at: float | None = None

    async def run(self) -> None:
        try:
            with self._broker.listen(self._topics()) as nudges:
                while True:
                    await self._fetch(nudges)
        except SessionLost as error:
            self._hands.on_lost(str(error))

    async def _fetch(self, nudges: Nudges) -> None:
        if not self._holdings.free:
            await self._holdings.wait_for_change()
            return
        asked_at = time.monotonic()
        leases = await self._claim(self._queues.order(), self._holdings.free)
        self.answered_at = time.monotonic()
        # An answer that was long under way may be taken for a ghost's any moment, and run elsewhere.
        take = self._hands.start if self.answered_at - asked_at < self._hands.too_old else self._hands.give_back
        for lease in leases:
            take(lease)
        if leases:
            await asyncio.sleep(0)
        else:
            await nudges.wait(LOOK_AGAIN)

    async def _claim(self, queues: Sequence[str], limit: int) -> list[Lease]:
        number, times = self.request + 1, 0
        while True:
            try:
                leases = await self._broker.claim(self._session, number, queues, limit)
            except SessionLost:
                raise
            except BrokerError as error:
                times += 1
                self._events.tell(BrokerTrouble("claiming", str(error), times))
                await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(times, 10)) * (0.5 + self._chance.random()))
                continue
            if times:
                self._events.tell(BrokerBack("claiming"))
            self.request = number
            return leases

    def _topics(self) -> list[str]:
        return [topics.queue(name) for name in self._queues.names] or [topics.ANY_QUEUE]
