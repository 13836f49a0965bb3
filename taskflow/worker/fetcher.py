"""Claims jobs while there is room for them, and waits for a nudge when no job is ready."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import anyio

from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import Chance
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError, SessionLost
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.session import Outlook
from taskflow.worker.events import BrokerCallFailed, BrokerRecovered, Events
from taskflow.worker.options import QueueChoice
from taskflow.worker.registration import TroubleReport

LOOK_AGAIN: Final = 5.0
"""Seconds without a nudge after which the fetcher claims again, because nudges may
be lost. It does not do so after a heartbeat has reported that there is no work."""

OUTLOOK_TTL: Final = 1.4
"""A heartbeat's report is trusted for `LOOK_AGAIN` times this factor. That is slightly
longer than the 6.7 s between an idle session's heartbeats (with a ttl of 20 s)."""

MAX_IDLE_INTERVAL: Final = 60.0  # seconds after which the fetcher claims again, whatever the heartbeats report
MANY: Final = 8
"""If a claim fills more than 1/MANY of the room, jobs are arriving so fast that the next
claim follows without a nudge. With fewer jobs, every second claim would find nothing."""

PAUSES: Final = Pauses(0.05, 2.0)


class LeaseSink(Protocol):
    """The session, which takes the leases. They start in a later turn of the event loop, or when `begin_taken` is called."""

    def room(self) -> int: ...
    async def wait_for_room(self) -> None: ...
    def take(self, leases: Sequence[Lease], claimed_at: float) -> None: ...
    def begin_taken(self) -> None: ...
    def give_back(self, leases: Sequence[Lease], claimed_at: float) -> None: ...
    def lose(self, why: str) -> None: ...


class Fetcher:
    """Claims jobs for a session, one claim at a time. One whose answer was lost is repeated with the same number.

    `answered_at` is the time of the last answer, and `full_at` the last time that there was no room. Both are on the monotonic clock,
    and None at first. `has_tried` is set when the first claim was answered or failed, or when there was no room for one. Leases that
    arrive more than `too_old` seconds after the request are handed back.
    """

    def __init__(
        self,
        broker: Broker,
        session: bytes,
        queues: QueueChoice,
        sink: LeaseSink,
        too_old: float,
        events: Events,
        chance: Chance,
        trouble: TroubleReport,
    ) -> None:
        self._broker = broker
        self._session = session
        self._queues = queues
        self._sink = sink
        self._too_old = too_old
        self._events = events
        self._trouble = trouble
        self._retries = Retries(PAUSES, chance.random)
        self._nudge: Callable[[], None] = lambda: None
        self._answered = asyncio.Event()
        self._answered.set()
        self.has_tried = asyncio.Event()
        self._is_stopping = False
        self._is_waiting = False
        self._nothing_since = self._looked_at = -math.inf
        self.request = 0
        self.answered_at: float | None = None
        self.full_at: float | None = None

    async def run(self) -> None:
        try:
            with self._broker.listen([topics.queue(name) for name in self._queues.names] or [topics.ANY_QUEUE]) as waiter:
                self._nudge = waiter.nudge
                while not self._is_stopping:
                    await self._fetch(waiter)
        except SessionLost as error:
            self._sink.lose(str(error))

    async def stop(self, within: float) -> None:
        """Stop claiming. Wait at most `within` seconds for a claim in progress, whose leases would else belong to no worker for a while."""
        self._is_stopping = True
        with anyio.move_on_after(within):
            await self._answered.wait()

    def apply_outlook(self, outlook: Outlook, asked_at: float) -> None:
        """Apply the outlook from the answer to a heartbeat that was sent at `asked_at`."""
        self._nothing_since = -math.inf if outlook.is_ready else asked_at
        if not self._is_waiting:
            return
        if not outlook.is_ready:
            self.answered_at = asked_at
        elif time.monotonic() - self._looked_at >= LOOK_AGAIN:  # otherwise the work is probably in a queue of other workers
            self._nudge()

    def look(self) -> None:
        if self._is_waiting:
            self._nudge()

    async def _fetch(self, waiter: Waiter) -> None:
        limit = self._sink.room()
        if not limit:
            self.has_tried.set()
            await self._sink.wait_for_room()
            self.full_at = time.monotonic()
            return
        asked_at = self._looked_at = time.monotonic()
        self._answered.clear()
        try:
            leases = await self._claim(self._queues.order(), limit)
            self.answered_at = time.monotonic()
            # The leases of a slow answer may already count as ghosts, and run elsewhere.
            take = self._sink.take if self.answered_at - asked_at < self._too_old else self._sink.give_back
            take(leases, asked_at)
        finally:
            self._answered.set()
        if len(leases) == limit:
            return
        if leases:  # no more jobs are ready: start these before claiming again
            self._sink.begin_taken()
            await asyncio.sleep(0)
        if not leases or (len(leases) * MANY <= limit and waiter.is_prompt):  # a job that arrived since the claim has sent a nudge
            await self._rest(waiter)

    async def _rest(self, waiter: Waiter) -> None:
        longest, pause = time.monotonic() + MAX_IDLE_INTERVAL, LOOK_AGAIN
        self._is_waiting = True
        try:
            while not await waiter.wait(pause):
                now = time.monotonic()
                until = min(longest, self._nothing_since + OUTLOOK_TTL * LOOK_AGAIN)
                if now >= until or not waiter.is_prompt:
                    break
                pause = min(LOOK_AGAIN, until - now)
        finally:
            self._is_waiting = False

    async def _claim(self, queues: Sequence[str], limit: int) -> list[Lease]:
        number = self.request + 1
        while True:
            try:
                leases = await self._broker.claim(self._session, number, queues, limit)
            except SessionLost:
                raise
            except BrokerError as error:
                pause = self._retries.failed()
                self._events.emit(BrokerCallFailed("claiming", str(error), self._retries.failures))
                await self._trouble.failed("claiming", str(error), self._retries.failures)
                await asyncio.sleep(pause)
                if self._is_stopping:
                    return []
            except Exception:
                # The same request would get the same answer. After the next request, the store treats these leases as ghosts and gives
                # them back without counting a hand-back.
                self.request = number
                raise
            else:
                break
            finally:
                self.has_tried.set()
        if self._retries.succeeded():
            self._events.emit(BrokerRecovered("claiming"))
            await self._trouble.recovered("claiming")
        self.request = number
        return leases
