"""Checks the marks after a verb that took long: its jobs may lie behind the marks by which others read. See marks.sql."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from taskflow.model.errors import BrokerError

LATE_AFTER: Final = 0.25
"""Seconds. No mark goes beyond half a second ago, so this leaves as much for the commit itself."""

NOT_AT_ONCE: Final = 1.0
"""Delay before a routine look; a worker that has just started has more urgent queries."""

AT_MOST_EVERY: Final = 1.0
"""Seconds between two looks of one process. If all verbs take long on a server, more looks do not help it."""

AFTER_FAILURE: Final = 30.0
"""Seconds until the next look after a failed one, which may have taken longer than the server allows."""

CLOSED_WITHIN: Final = 2.0


class LateCommits:
    """Runs one look at a time. Late commits during a look are found by the next one."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._is_wanted = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._task: asyncio.Task[None] | None = None
        self._when_due: asyncio.TimerHandle | None = None

    def after(self, seconds: float) -> None:
        """Note that a verb has made jobs ready, and how long it took."""
        if seconds >= LATE_AFTER:
            self.want()

    def want_soon(self) -> None:
        if self._when_due is None:
            self._when_due = asyncio.get_running_loop().call_later(NOT_AT_ONCE, self.want)

    def want(self) -> None:
        self._forget_due()
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._is_idle.clear()
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Wait briefly for a look under way: the server would go on with it on an abandoned connection. The same for a look that is due,
        because the store counts on this process."""
        if self._when_due is not None:
            self.want()
        if self._is_idle.is_set():
            self._is_wanted = False
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSED_WITHIN):
                    await self._is_idle.wait()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _forget_due(self) -> None:
        if self._when_due is not None:
            self._when_due.cancel()
            self._when_due = None

    async def _run(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            self._is_idle.clear()
            try:
                await self._look()
            except BrokerError:  # upkeep asks for another one every ten seconds
                self._is_idle.set()
                await asyncio.sleep(AFTER_FAILURE)
            finally:
                self._is_idle.set()
            await asyncio.sleep(AT_MOST_EVERY)
