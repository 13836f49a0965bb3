"""Checks the low-water marks (see low_water_marks.sql) after a slow verb. Its jobs
may lie behind the marks, where other processes do not look for jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from taskflow.broker.duty import Duty
from taskflow.model.errors import BrokerError

LATE_AFTER: Final = 0.25
"""Seconds after which a verb counts as slow. Marks stay half a second in the past, so a quarter of a second remains for the commit."""

NOT_AT_ONCE: Final = 1.0
"""Seconds to wait before a routine check. A worker that has just started has more urgent queries."""

AT_MOST_EVERY: Final = 1.0
"""Minimum seconds between two checks by one process. If all verbs on a server are slow, more checks do not help."""

AFTER_FAILURE: Final = 30.0
"""Seconds to wait after a failed check, which may have taken longer than the server allows."""

CLOSED_WITHIN: Final = 2.0


class LateCommits:
    """Runs checks of the marks, one at a time. A check finds the commits that were late during the previous one."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._is_wanted = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._looking = Duty(self._run, is_needed=lambda: self._is_wanted)
        self._when_due: asyncio.TimerHandle | None = None

    def after(self, seconds: float) -> None:
        """Check the marks if a verb that made jobs ready took long. `seconds` is how long it took."""
        if seconds >= LATE_AFTER:
            self.want()

    def want_soon(self) -> None:
        if self._when_due is None:
            self._when_due = asyncio.get_running_loop().call_later(NOT_AT_ONCE, self.want)

    def want(self) -> None:
        self._forget_due()
        self._is_wanted = True
        if not self._looking.is_running:
            self._is_idle.clear()
            self._looking.start()

    async def close(self) -> None:
        """Wait briefly for a running check, because the server would continue it even on an abandoned connection.

        If a check is due, it runs first, because the store relies on this process for it.
        """
        if self._when_due is not None:
            self.want()
        if self._is_idle.is_set():
            self._is_wanted = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_WITHIN):
                await self._is_idle.wait()
        await self._looking.end()

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
            except BrokerError:  # upkeep requests another check every ten seconds
                self._is_idle.set()
                await asyncio.sleep(AFTER_FAILURE)
            except asyncio.CancelledError:
                self._is_wanted = True
                raise
            finally:
                self._is_idle.set()
            await asyncio.sleep(AT_MOST_EVERY)
