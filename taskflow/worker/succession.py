"""Replaces a lost session of a worker by a new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from taskflow.broker.retry import retry
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.retry import Pauses, Retries
from taskflow.model.seams import Chance
from taskflow.worker.events import AwaitsBroker, BrokerTrouble, Events
from taskflow.worker.options import WorkerOptions
from taskflow.worker.session import WorkerSession

PAUSES: Final = Pauses(0.1, 5.0)
EARLY: Final = 10.0
"""A session that ends within so many seconds of its start has ended early: what ended it will most likely end the next one too."""

EARLY_PAUSES: Final = Pauses(0.25, 30.0)


class Succession:
    """`present` is the session that works, None between two; `lost` is the last one that was lost.

    `begin` makes a session whose loss calls `note_lost`.
    """

    def __init__(self, begin: Callable[[], Awaitable[WorkerSession]], options: WorkerOptions, events: Events, chance: Chance) -> None:
        self.present: WorkerSession | None = None
        self.lost: WorkerSession | None = None
        self.past: dict[WorkerSession, asyncio.Task[None]] = {}
        """Lost sessions whose verdicts are still being offered."""

        self._begin = begin
        self._options = options
        self._events = events
        self._chance = chance
        self._early_ends = Retries(EARLY_PAUSES, chance.random)
        self._is_last = self._is_closing = False
        self._to_abandon: WorkerSession | None = None
        self._rebirth: asyncio.Task[None] | None = None
        self._abandoning: asyncio.Task[None] | None = None

    @property
    def all(self) -> list[WorkerSession]:
        """From any thread."""
        return [*(() if (present := self.present) is None else (present,)), *self.past]

    async def begin_first(self) -> None:
        """Wait for a broker that does not answer, if the options say so."""
        timeout = self._options.start_timeout

        def note(error: Exception, times: int) -> None:
            if timeout and times == 1:
                self._events.tell(AwaitsBroker(str(error), timeout))

        self.present = await retry(self._begin, PAUSES, on=BrokerUnavailable, note=note, give_up_at=time.monotonic() + timeout)

    def note_lost(self) -> None:
        """The present session is dead, and what it held belongs to others: another session takes its place."""
        if self.present is not None:
            self.lost = self._to_abandon = self.present
            self.present = None
        if not self._is_closing:
            self._rebirth = asyncio.get_running_loop().create_task(self._begin_again())
            self._rebirth.add_done_callback(self._note_rebirth)

    async def finish(self) -> None:
        """Let the present session claim nothing more, and return when everything has ended here and the broker knows."""
        self._is_last = True
        await self._end_rebirth()
        if self.present is not None and not await self.present.finish():
            await self._end_rebirth()
        if self.past:
            await asyncio.wait(list(self.past.values()))

    async def close(self, hurry: Callable[[], bool]) -> bool:
        """Wind down; return True if every run had ended by itself. May be cancelled and called again: each step goes on where it was."""
        self._is_last = self._is_closing = True
        await self._end_rebirth()
        began_at = time.monotonic()
        all_ended = True if self.present is None else await self.present.wind_down(hurry)
        await self._end_past(max(0.0, self._options.last_words - (time.monotonic() - began_at)))
        return all_ended

    def _note_rebirth(self, rebirth: asyncio.Task[None]) -> None:
        """Cancelled by a stranger, a job that cancels every task there is, it would leave a worker without a session for ever."""
        if rebirth.cancelled() and not self._is_last:
            self.note_lost()

    async def _end_rebirth(self) -> None:
        """No other session begins. A lost one is abandoned all the same."""
        if self._rebirth is not None:
            self._rebirth.cancel()
            await asyncio.gather(self._rebirth, return_exceptions=True)
        await self._abandon_lost()

    async def _begin_again(self) -> None:
        await self._abandon_lost()
        if self.lost is not None and self.lost.age < EARLY:
            await asyncio.sleep(self._early_ends.failed())
        else:
            self._early_ends.succeeded()
        if not self._is_last:
            # On any error, no thread left for a keeper for example: to give up would be to live on and do nothing.
            self.present = await retry(self._begin, PAUSES, on=Exception, note=self._note_trouble, draw=self._chance.random)

    def _note_trouble(self, error: Exception, times: int) -> None:
        self._events.tell(BrokerTrouble("a new session", str(error) or type(error).__name__, times))

    async def _abandon_lost(self) -> None:
        """Whatever comes of it, what follows must be. But a stranger's cancellation is no end of it."""
        while (lost := self._to_abandon) is not None:
            if self._abandoning is None or self._abandoning.done():
                self._abandoning = asyncio.get_running_loop().create_task(self._abandon(lost))
            await asyncio.wait([self._abandoning])
            if not self._abandoning.cancelled():
                self._to_abandon = None

    async def _abandon(self, lost: WorkerSession) -> None:
        await lost.abandon()
        self._settle_verdicts(lost)

    def _settle_verdicts(self, lost: WorkerSession) -> None:
        self.past[lost] = settling = asyncio.get_running_loop().create_task(lost.settle_verdicts())
        settling.add_done_callback(lambda settling: self._note_settled(lost, settling))

    def _note_settled(self, lost: WorkerSession, settling: asyncio.Task[None]) -> None:
        if not settling.cancelled():
            self.past.pop(lost, None)
        elif not self._is_closing:  # by a stranger
            self._settle_verdicts(lost)

    async def _end_past(self, patience: float) -> None:
        """All at one time. Their last verdicts have had the time of the last session's end, and have `patience` seconds more: it may have
        been short, and the broker may be back this moment."""
        for settling in self.past.values():
            settling.cancel()
        await asyncio.gather(*self.past.values(), return_exceptions=True)
        await asyncio.gather(*(life.end(patience) for life in self.past))
        self.past.clear()
