"""Wake-ups over publish and subscribe.

A server that told everybody of every job would keep a busy fleet busy with listening. So it tells only of what somebody has asked
for, once: a claim that finds no more asks by itself, in the same step; who waits without having claimed asks by `arm.lua`, which
also tells him what is there already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.listener import Arm, Listener
from taskflow.broker.redis.connect.connection import ERRORS, Subscription, subscription_over
from taskflow.broker.redis.connect.pool import ConnectionPool
from taskflow.broker.redis.packing import ids_in

PING_EVERY: Final = 25.0
"""Seconds after which a silent subscription is asked whether it is there."""

PONG_WITHIN: Final = 3.0


class RedisListener(Listener):
    def __init__(self, pool: ConnectionPool, prefix: str, arm: Arm) -> None:
        super().__init__(arm, ERRORS)
        self._pool = pool
        self._nudges, self._ended = f"{prefix}nudges".encode(), f"{prefix}ended".encode()
        self._is_heard = False

    async def hear(self, goes_on: Callable[[], None]) -> None:
        ear = subscription_over(await self._pool.open(), self._take)
        try:
            async with asyncio.timeout(PONG_WITHIN):
                await ear.subscribe(self._nudges, self._ended)
            goes_on()
            watching = asyncio.create_task(self._watch(ear))
            try:
                await ear.listen()
            finally:
                watching.cancel()
        finally:
            await ear.drop()

    async def _watch(self, ear: Subscription) -> None:
        """A connection that is dead in silence is cut, so that the listening ends."""
        while True:
            self._is_heard = False
            await asyncio.sleep(PING_EVERY)
            if not self._is_heard:
                with contextlib.suppress(*ERRORS):
                    await ear.send("PING")
                await asyncio.sleep(PONG_WITHIN)
                if not self._is_heard:
                    await ear.drop()
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
