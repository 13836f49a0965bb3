"""Calls the store's upkeep as often as the store needs it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import Chance
from taskflow.model.errors import BrokerError
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.schedule import Offer
from taskflow.model.session import Outlook
from taskflow.worker.events import BrokerCallFailed, Events
from taskflow.worker.registration import TroubleReport

LIMIT: Final = 250
"""The maximum number of moves in one call while jobs are falling due. These jobs wait
for the call, and so do claims for the jobs that the previous call made ready."""

PORTIONS: Final = ((100, 50), (500, 250))
BATCH_PAUSE: Final = 0.01
"""Work that no job is waiting for, mostly dropping old results, is done in small portions, `BATCH_PAUSE`
seconds apart, so that claims find the server free. The first hundred portions have 50 moves each.
The next ones have 250, so that old results are dropped as fast as new ones are added."""

LONGEST_PAUSE: Final = 5.0
PAUSES: Final = Pauses(0.5, LONGEST_PAUSE)
OUTLOOK_TTL: Final = 1.4 * LONGEST_PAUSE  # seconds for which a heartbeat's outlook is trusted
MAX_IDLE_INTERVAL: Final = 60.0  # seconds after which upkeep is called, whatever the heartbeats report
SHORT: Final = 2.0
UNANNOUNCED: Final = 0.1
"""If a heartbeat reports work that is due this many seconds or more before
the planned call, no nudge announced it, and upkeep is called earlier."""

# Minimum seconds between two calls. Each job that is due soon sends a nudge, and a flood of nudges must not cause a flood of calls.
AT_LEAST: Final = 0.005


class Upkeep:
    """Calls the store's upkeep when it is due. `on_ready` is called when a call has made jobs ready. `on_offers` fires the schedules that a
    call offers, and returns the seconds until the first of them is due again. `on_ended`, if given, gets the ids of jobs that have ended
    without a settlement, and how many ids the store has dropped."""

    def __init__(
        self,
        broker: Broker,
        chance: Chance,
        events: Events,
        *,
        on_ready: Callable[[], None],
        on_offers: Callable[[Sequence[Offer]], Awaitable[float]],
        on_ended: Callable[[Sequence[bytes], int], None] | None,
        trouble: TroubleReport,
    ) -> None:
        self._broker = broker
        self._on_offers = on_offers
        self._chance = chance
        self._events = events
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._trouble = trouble
        self._retries = Retries(PAUSES, chance.random)
        self._is_awaited = False
        self._portions = 0
        self._is_at_rest = False
        self._outlook_at = self._due_at = self._next_at = 0.0
        self._nudge: Callable[[], None] = lambda: None
        self._when_due: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        with self._broker.listen([topics.DUE]) as waiter:
            self._nudge = waiter.nudge
            while True:
                pause = await self._once()
                ended_at = time.monotonic()
                if pause > 0 and await self._wait(waiter, pause):
                    await asyncio.sleep(max(0.0, ended_at + AT_LEAST - time.monotonic()))

    def note_work(self) -> None:
        self._is_at_rest = False

    def apply_outlook(self, outlook: Outlook, asked_at: float) -> None:
        """Apply the outlook from the answer to a heartbeat that was sent at `asked_at`."""
        self._outlook_at, self._due_at = asked_at, asked_at + outlook.due_in
        if self._due_at < self._next_at - UNANNOUNCED:
            self._forget_due()
            self._when_due = asyncio.get_running_loop().call_later(self._due_at - time.monotonic(), self._nudge)

    def _forget_due(self) -> None:
        if self._when_due is not None:
            self._when_due.cancel()
            self._when_due = None

    async def _wait(self, waiter: Waiter, pause: float) -> bool:
        """Wait until the next call is due. It is postponed while upkeep is at rest. Return True if a nudge arrived."""
        began_at = time.monotonic()
        self._next_at = began_at + pause
        while not await waiter.wait(pause):
            now = time.monotonic()
            self._next_at = min(self._due_at, self._outlook_at + OUTLOOK_TTL, began_at + MAX_IDLE_INTERVAL)
            if self._next_at <= now or self._outlook_at < began_at or not self._is_at_rest:
                return False
            pause = self._next_at - now
        return True

    async def _once(self) -> float:
        self._next_at = 0.0
        self._forget_due()
        looks_in, fired_for = math.inf, 0.0
        try:
            done = await self._broker.upkeep(self._limit(), ends=self._on_ended is not None)
            if self._on_ended is not None and (done.ended or done.ends_dropped):
                self._on_ended(done.ended, done.ends_dropped)
            if done.offers:
                began_at = time.monotonic()
                looks_in = await self._on_offers(done.offers)
                fired_for = time.monotonic() - began_at
                self._on_ready()  # so a claim need not wait for the nudge
        except BrokerError as error:
            self._is_at_rest = False
            pause = self._retries.failed()
            self._events.emit(BrokerCallFailed("upkeep", str(error), self._retries.failures))
            await self._trouble.failed("upkeep", str(error), self._retries.failures)
            return pause
        if self._retries.succeeded():
            await self._trouble.recovered("upkeep")
        self._is_awaited = done.readied > 0 or done.released > 0
        if self._is_awaited:
            self._on_ready()
        self._is_at_rest = not any((done.readied, done.released, done.reaped, done.expired, done.dropped, done.offers, done.ended))
        if done.next_in > 0:
            self._portions = 0
            next_in = done.next_in
            # Workers that get the same time spread their calls. They call early rather than late, because a planned job may be due then. A
            # short time is not changed: it means that this worker is alone, or that something is due.
            if next_in > SHORT:
                next_in *= 1.0 - 0.2 * self._chance.random()
            return max(0.0, min(looks_in, min(next_in, LONGEST_PAUSE) - fired_for))
        self._portions += 1
        return 0.0 if self._is_awaited else BATCH_PAUSE

    def _limit(self) -> int:
        if self._is_awaited:
            return LIMIT
        return next((moves for number, moves in PORTIONS if self._portions < number), LIMIT)
