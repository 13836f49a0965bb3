"""LISTEN and NOTIFY: one listening connection for each event loop, and the telling of what has been committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.asking import Arm, Ears
from taskflow.broker.postgres.link import Link, drop
from taskflow.broker.postgres.refusals import ERRORS
from taskflow.model.errors import BrokerError

EVERYTHING: Final = "*"
"""What a notification says when it would be too long: everybody looks."""

LOOK_EVERY: Final = 25.0
"""Seconds after which a silent connection is asked whether it is there."""

AT_MOST_EVERY: Final = 0.005
"""Seconds between two notifications of one process that is busy: each takes a lock that all who notify share."""

_JOB: Final = names.job(b"")


class PostgresEars(Ears):
    def __init__(self, link: Link, channel: str, arm: Arm) -> None:
        super().__init__(arm, ERRORS)
        self._link = link
        self._channel = channel

    async def hear(self, goes_on: Callable[[], None]) -> None:
        connection = await self._link.open(for_listening=True)
        cut = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: cut.set())
            await connection.add_listener(self._channel, self._take)
            goes_on()
            while not cut.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(cut.wait(), LOOK_EVERY)
                    return
                await connection.execute("SELECT 1", timeout=3.0)
        finally:
            drop(connection)

    def _take(self, connection: object, pid: int, channel: str, payload: object) -> None:
        words = str(payload)
        if words == EVERYTHING:
            self.bell.ring_all()
            return
        topics = words.split("\n")
        self.told((topic for topic in topics if topic.startswith(_JOB)), disarms=True)
        self.told((topic for topic in topics if not topic.startswith(_JOB)), disarms=False)


class Telling:
    """Tells other processes what has been committed here: one notification under way at a time, with all that came meanwhile."""

    def __init__(self, tell: Callable[[list[str], list[bytes]], Awaitable[Any]]) -> None:
        self._tell = tell
        self._topics: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, topics: Iterable[str]) -> None:
        self._topics.update(topics)
        if self._topics and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """What was to be told is told: others would wait for it."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1.0)
            self._task.cancel()

    async def _run(self) -> None:
        while self._topics:
            topics, self._topics = self._topics, set()
            ended = [bytes.fromhex(topic.removeprefix(_JOB)) for topic in topics if topic.startswith(_JOB)]
            with contextlib.suppress(BrokerError):  # a hint: who waits looks for himself in the end
                await self._tell([topic for topic in topics if not topic.startswith(_JOB)], ended)
            await asyncio.sleep(AT_MOST_EVERY)
