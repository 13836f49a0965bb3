"""A broker's connections, listener and notifier in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.duty import Duty
from taskflow.broker.postgres import rows
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.errors import is_no_utf8
from taskflow.broker.postgres.notifier import CLOSE_TIMEOUT, Notifier
from taskflow.broker.postgres.wakeups import EVERYTHING, PostgresListener
from taskflow.model.errors import BrokerError

LOOK_PAUSE: Final = 1.0
"""Seconds before each check of the marks. If all verbs on a server are slow, more checks do not help."""


class LoopConnections:
    """A broker's connections, listener and notifier in one event loop. `look` checks the low-water marks: see low_water_marks.sql."""

    look: Callable[[], Awaitable[None]]
    forget: Callable[[str], Awaitable[Any]]

    def __init__(self, pool: ConnectionPool, listener: PostgresListener, notifier: Notifier) -> None:
        self._wants_look = False
        self._looking = Duty(self._keep_looking, is_needed=lambda: self._wants_look)
        self.pool = pool
        self.listener = listener
        self.notifier = notifier
        self.preparing = asyncio.Lock()
        self.turn = asyncio.Lock()  # operations that lock records go one after the other

    async def fetch(self, statement: str, *arguments: Any, within: float) -> list[Any]:
        """Return the rows of a statement. If some text cannot be sent or decoded as UTF-8, fetch all text as bytes, so that a bad name
        affects only its own row."""
        try:
            return await self.pool.fetch(statement, *arguments, within=within)
        except (UnicodeDecodeError, BrokerError) as error:
            if isinstance(error, BrokerError) and not is_no_utf8(error):
                raise
        bare = rows.bare(statement, await self.pool.columns_of(statement))
        return [rows.BareRow.of(row) for row in await self.pool.fetch(bare, *arguments, within=within)]

    def notify(self, topics: Mapping[str, int]) -> None:
        """Wake listeners in this process, and notify those in other processes that have left a note about the topics."""
        if EVERYTHING in topics:
            self.listener.flag.wake_all()
        here = {topic for topic, number in topics.items() if number or topic != names.DUE}
        if any(topic.startswith("queue:") for topic in here):
            here.add(names.ANY_QUEUE)
        self.listener.flag.wake(here)
        self.notifier.add(topics)

    def check_marks(self) -> None:
        """Check the low-water marks in a moment: a worker that has just started has more urgent queries."""
        self._wants_look = True
        self._looking.start()

    async def _keep_looking(self) -> None:
        while self._wants_look:
            await asyncio.sleep(LOOK_PAUSE)
            self._wants_look = False
            with contextlib.suppress(BrokerError):  # another process checks them in a minute
                await self.look()

    async def close(self) -> None:
        await self._looking.end()
        await self.notifier.close()
        await self.listener.close()
        if self.listener.has_noted:
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self.forget(self.listener.id)
        await self.pool.close()
