"""Wake-ups by publish and subscribe.

If every job caused a wake-up, a busy fleet would spend its time on receiving them. So the server publishes a topic only if a listener has
asked for it, and only once. A claim that finds too few jobs asks in the same call. Any other listener asks with the script `arm`, which
also returns the topics that already have something.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.listener import Listener, Lookup
from taskflow.broker.redis.connect.connection import ERRORS, Subscription, subscription_over
from taskflow.broker.redis.connect.pool import ConnectionPool
from taskflow.broker.redis.packing import ids_in

PING_EVERY: Final = 25.0
"""Seconds without a message after which the subscription sends PING."""

PONG_WITHIN: Final = 3.0
"""Seconds for the answer to PING or SUBSCRIBE."""


class RedisListener(Listener):
    def __init__(self, pool: ConnectionPool, prefix: str, arm: Lookup) -> None:
        super().__init__(arm, ERRORS)
        self._pool = pool
        self._wakeups, self._ended = f"{prefix}nudges".encode(), f"{prefix}ended".encode()
        self._is_heard = False

    async def hear(self, goes_on: Callable[[], None]) -> None:
        subscription = subscription_over(await self._pool.open(), self._take)
        try:
            async with asyncio.timeout(PONG_WITHIN):
                await subscription.subscribe(self._wakeups, self._ended)
            goes_on()
            watching = asyncio.create_task(self._watch(subscription))
            try:
                await subscription.listen()
            finally:
                watching.cancel()
        finally:
            await subscription.drop()

    async def _watch(self, subscription: Subscription) -> None:
        """Drop the connection if the server does not answer, which ends `listen`."""
        while True:
            self._is_heard = False
            await asyncio.sleep(PING_EVERY)
            if not self._is_heard:
                with contextlib.suppress(*ERRORS):
                    await subscription.send("PING")
                await asyncio.sleep(PONG_WITHIN)
                if not self._is_heard:
                    await subscription.drop()
                    return

    def _take(self, message: Any) -> None:
        self._is_heard = True
        if not isinstance(message, list) or message[0] != b"message":
            return
        if message[1] == self._ended:
            self.told(map(names.job, ids_in(message[2])), disarms=True)
            return
        topics = message[2].decode(errors="replace").split("\n")
        sessions = [topic for topic in topics if topic.startswith(_SESSION)]
        if sessions:
            self.told(sessions, disarms=False)
        if len(sessions) < len(topics):
            self.told((topic for topic in topics if topic not in sessions) if sessions else topics, disarms=True)


_SESSION: Final = names.session(b"")
