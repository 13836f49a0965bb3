"""Claims jobs as there is room for them, and waits for a nudge when there are no more."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import anyio

from taskflow.broker import topics
from taskflow.broker.nudges import Nudges
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError, SessionLost
from taskflow.model.retry import Pauses, Retries
from taskflow.model.seams import Chance
from taskflow.model.session import Outlook
from taskflow.worker.events import BrokerBack, BrokerTrouble, Events
from taskflow.worker.queues import QueueChoice

LOOK_AGAIN: Final = 5.0
"""Nudges are hints and may be missed: who has had none for so many seconds looks again, unless a beat has told that there is nothing."""

BELIEVED_FOR: Final = 1.4
"""Times as long what a beat has told is gone by. An idle session beats every 6.7 s, if its ttl is 20."""

LONGEST_REST: Final = 60.0
"""Seconds after which a claim is made whatever beats tell."""

MANY: Final = 8
"""Of jobs that come so fast that a claim brings more than this part of what there is room for, the next are there, most likely, before a
nudge tells so. Of fewer, every second claim would find nothing."""

PAUSES: Final = Pauses(0.05, 2.0)


class LeaseSink(Protocol):
    """Where the leases of a claim go."""

    def room(self) -> int:
        """How many leases to claim now."""
        ...

    async def wait_for_room(self) -> None:
        """Return as soon as there may be some. Look first, then wait."""
        ...

    def take(self, leases: Sequence[Lease], claimed_at: float) -> None:
        """Leases have come that were asked for at `claimed_at`. They begin when the loop gets to it, or at `begin_taken`."""
        ...

    def begin_taken(self) -> None:
        """Begin it now."""
        ...

    def give_back(self, leases: Sequence[Lease], claimed_at: float) -> None: ...

    def lose(self, why: str) -> None:
        """The session is dead."""
        ...


class Fetcher:
    """One claim under way at a time, numbered: a claim whose answer was lost is asked again under its number.

    `answered_at` is when one was answered last, `full_at` until when there was last no room for any: of the monotonic clock, None before
    the first. What comes later than `too_old` seconds after it was asked for goes back.
    """

    def __init__(
        self, broker: Broker, session: bytes, queues: QueueChoice, sink: LeaseSink, too_old: float, events: Events, chance: Chance
    ) -> None:
        self._broker = broker
        self._session = session
        self._queues = queues
        self._sink = sink
        self._too_old = too_old
        self._events = events
        self._retries = Retries(PAUSES, chance.random)
        self._nudge: Callable[[], None] = lambda: None
        self._answered = asyncio.Event()
        self._answered.set()
        self._is_stopping = False
        self._is_waiting = False
        self._nothing_since = self._looked_at = -math.inf
        self.request = 0
        self.answered_at: float | None = None
        self.full_at: float | None = None

    async def run(self) -> None:
        try:
            with self._broker.listen(self._topics()) as nudges:
                self._nudge = nudges.nudge
                while not self._is_stopping:
                    await self._fetch(nudges)
        except SessionLost as error:
            self._sink.lose(str(error))

    async def stop(self, within: float) -> None:
        """Claim nothing more. Wait at most `within` seconds for a claim that is under way.

        It is answered in a moment, or never. To cancel it would leave its leases to nobody for a while.
        """
        self._is_stopping = True
        with anyio.move_on_after(within):
            await self._answered.wait()

    def heed(self, outlook: Outlook, asked_at: float) -> None:
        """What a beat was told that asked then."""
        self._nothing_since = -math.inf if outlook.is_ready else asked_at
        if not self._is_waiting:
            return
        if not outlook.is_ready:
            self.answered_at = asked_at
        elif time.monotonic() - self._looked_at >= LOOK_AGAIN:  # else it is in a queue of others', most likely
            self._nudge()

    def look(self) -> None:
        """There is something to claim, as it seems."""
        if self._is_waiting:
            self._nudge()

    async def _fetch(self, nudges: Nudges) -> None:
        limit = self._sink.room()
        if not limit:
            await self._sink.wait_for_room()
            self.full_at = time.monotonic()
            return
        asked_at = self._looked_at = time.monotonic()
        self._answered.clear()
        try:
            leases = await self._claim(self._queues.order(), limit)
            self.answered_at = time.monotonic()
            # An answer that was long under way may be taken for a ghost's any moment, and run elsewhere.
            take = self._sink.take if self.answered_at - asked_at < self._too_old else self._sink.give_back
            take(leases, asked_at)
        finally:
            self._answered.set()
        if len(leases) == limit:
            return
        if leases:  # that was all: what came begins before more is asked for
            self._sink.begin_taken()
            await asyncio.sleep(0)
        if not leases or (len(leases) * MANY <= limit and nudges.is_prompt):  # what has come since then has nudged
            await self._rest(nudges)

    async def _rest(self, nudges: Nudges) -> None:
        """Until there may be something to claim."""
        longest, pause = time.monotonic() + LONGEST_REST, LOOK_AGAIN
        self._is_waiting = True
        try:
            while not await nudges.wait(pause):
                now = time.monotonic()
                until = min(longest, self._nothing_since + BELIEVED_FOR * LOOK_AGAIN)
                if now >= until or not nudges.is_prompt:
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
                self._events.tell(BrokerTrouble("claiming", str(error), self._retries.failures))
                await asyncio.sleep(pause)
                if self._is_stopping:
                    return []
            except Exception:
                # The same request would get the same answer. After the next one the store takes this one's leases for ghosts, and gives
                # them back without counting that.
                self.request = number
                raise
            else:
                break
        if self._retries.succeeded():
            self._events.tell(BrokerBack("claiming"))
        self.request = number
        return leases

    def _topics(self) -> list[str]:
        return [topics.queue(name) for name in self._queues.names] or [topics.ANY_QUEUE]
