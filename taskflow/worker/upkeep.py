"""Does the store's upkeep, as often as the store says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from taskflow.broker import topics
from taskflow.broker.nudges import Nudges
from taskflow.broker.protocol import Broker
from taskflow.model.errors import BrokerError
from taskflow.model.retry import Pauses, Retries
from taskflow.model.seams import Chance
from taskflow.model.session import Outlook
from taskflow.worker.events import BrokerTrouble, Events

LIMIT: Final = 250
"""Moves of one call while jobs fall due: they wait for it, and so do the claims of those that the last one has made ready."""

PORTIONS: Final = ((100, 50), (500, 250))
BREATH: Final = 0.01
"""What nobody waits for, to drop what is no longer kept above all, goes in small portions with so many seconds between them: claims that
come meanwhile find the server free. The first hundred of 50 moves, the next ones of 250, lest more come than is dropped."""

LONGEST_PAUSE: Final = 5.0
PAUSES: Final = Pauses(0.5, LONGEST_PAUSE)
BELIEVED_FOR: Final = 1.4 * LONGEST_PAUSE
"""Seconds after which nobody goes by what a beat has told."""

LONGEST_REST: Final = 60.0
"""Seconds after which upkeep is done whatever beats tell."""

SHORT: Final = 2.0
TOLD: Final = 0.1
"""What is due so many seconds before the next call, or more, is what nobody has told of."""

MOMENT: Final = 0.001
"""Who came a little too early, as timers have it, and was told that something is due by now, comes again in so many seconds."""

# A job planned for soon nudges: no more often than this, in seconds, or a flood of them would be a flood of upkeep.
AT_LEAST: Final = 0.005


class Upkeep:
    """`on_ready` is called when it has made jobs ready to be claimed."""

    def __init__(self, broker: Broker, chance: Chance, events: Events, on_ready: Callable[[], None] = lambda: None) -> None:
        self._broker = broker
        self._chance = chance
        self._events = events
        self._on_ready = on_ready
        self._retries = Retries(PAUSES, chance.random)
        self._is_awaited = False
        self._portions = 0
        self._was_early = False
        self._is_at_rest = False
        self._told_at = self._due_at = self._next_at = 0.0
        self._nudge: Callable[[], None] = lambda: None
        self._when_due: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        with self._broker.listen([topics.DUE]) as nudges:
            self._nudge = nudges.nudge
            while True:
                pause = await self._once()
                if pause > 0 and await self._wait(nudges, pause):
                    await asyncio.sleep(AT_LEAST)

    def note_work(self) -> None:
        """Jobs are done here: what has ended makes more to do."""
        self._is_at_rest = False

    def heed(self, outlook: Outlook, asked_at: float) -> None:
        """What a beat was told that asked then."""
        self._told_at, self._due_at = asked_at, asked_at + outlook.due_in
        if self._due_at < self._next_at - TOLD:
            self._forget_due()
            self._when_due = asyncio.get_running_loop().call_later(self._due_at - time.monotonic(), self._nudge)

    def _forget_due(self) -> None:
        if self._when_due is not None:
            self._when_due.cancel()
            self._when_due = None

    async def _wait(self, nudges: Nudges, pause: float) -> bool:
        """True when nudged. Where nothing was done, and beats since tell of nothing to do, it is put off."""
        began_at = time.monotonic()
        self._next_at = began_at + pause
        while not await nudges.wait(pause):
            now = time.monotonic()
            self._next_at = min(self._due_at, self._told_at + BELIEVED_FOR, began_at + LONGEST_REST)
            if self._next_at <= now or self._told_at < began_at or not self._is_at_rest:
                return False
            pause = self._next_at - now
        return True

    async def _once(self) -> float:
        self._next_at = 0.0
        self._forget_due()
        try:
            done = await self._broker.upkeep(self._limit())
        except BrokerError as error:
            self._is_at_rest = False
            pause = self._retries.failed()
            self._events.tell(BrokerTrouble("upkeep", str(error), self._retries.failures))
            return pause
        self._retries.succeeded()
        self._is_awaited = done.readied > 0 or done.released > 0
        if self._is_awaited:
            self._on_ready()
        self._is_at_rest = not any((done.readied, done.released, done.reaped, done.expired, done.dropped))
        if done.next_in > 0:
            self._portions, self._was_early = 0, False
            return self._until_next(done.next_in)
        self._portions += 1
        was_early, self._was_early = self._was_early, self._is_at_rest
        if self._is_awaited:
            return 0.0
        return MOMENT if self._was_early and not was_early else BREATH  # what is due and does not move is another's at this moment

    def _limit(self) -> int:
        if self._is_awaited:
            return LIMIT
        return next((moves for number, moves in PORTIONS if self._portions < number), LIMIT)

    def _until_next(self, next_in: float) -> float:
        # Workers that were told the same time come a little apart: earlier, since a planned job may be what they were told of. One that
        # was told a short time is alone, or there is something due.
        return min(next_in * (1.0 - 0.2 * self._chance.random()) if next_in > SHORT else next_in, LONGEST_PAUSE)
