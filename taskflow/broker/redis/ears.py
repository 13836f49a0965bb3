"""Wake-ups: one subscription for each event loop, and the asking to be told.

A server that told everybody of every job would keep a busy fleet busy with listening. So it tells only of what somebody has asked
for, once: a claim that finds nothing asks by itself, in the same step; who waits without having claimed asks by `arm.lua`, which
also tells him what is there already. Nothing falls between the look and the asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection

from taskflow.broker import topics as names
from taskflow.broker.nudges import Bell, Nudges
from taskflow.broker.redis.link import ERRORS, Link, drop
from taskflow.broker.redis.packing import ids_in
from taskflow.model.errors import BrokerError

PING_EVERY: Final = 25.0
"""Seconds after which a silent subscription is asked whether it is there."""

PONG_WITHIN: Final = 3.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0

_JOB: Final = names.job(b"")

Arm = Callable[[list[str], list[bytes]], Awaitable[tuple[list[str], list[bytes]]]]
"""Asks to be told of topics and of the end of jobs; answers those of both that need not be waited for."""


class RedisNudges(Nudges):
    """Asks to be told before it waits."""

    def __init__(self, ears: Ears, topics: Sequence[str]) -> None:
        super().__init__(ears.bell, topics)
        self._ears = ears

    async def wait(self, timeout: float | None = None) -> bool:
        self._ears.want(self._topics)
        return await super().wait(timeout)


class Ears:
    """Listens for one event loop. `armed` are the topics that the server knows to tell of."""

    def __init__(self, link: Link, prefix: str, arm: Arm) -> None:
        self.bell = Bell()
        self._link = link
        self._nudges, self._ended = f"{prefix}nudges".encode(), f"{prefix}ended".encode()
        self._arm = arm
        self._armed: set[str] = set()
        self._wanted: set[str] = set()
        self._is_on = asyncio.Event()
        self._has_wants = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.times = 0
        """How often it has been subscribed: what was armed before the last time may not have been heard."""

    def listen(self, topics: Sequence[str]) -> Nudges:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._stay_subscribed()), asyncio.create_task(self._keep_asking())]
        return RedisNudges(self, topics)

    def want(self, topics: Iterable[str]) -> None:
        wanted = {topic for topic in topics if topic not in self._armed}
        if wanted:
            self._wanted |= wanted
            self._has_wants.set()

    def armed(self, topics: Iterable[str], times: int) -> None:
        """The server was asked by other means, in a call that was begun when the subscription was the one numbered `times`."""
        if self._is_on.is_set() and times == self.times:
            self._armed.update(topics)

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the subscription ---------------------------------------------------------------------------------------

    async def _stay_subscribed(self) -> None:
        failures = 0
        while True:
            try:
                connection = await self._subscribe()
            except (*ERRORS, BrokerError):
                failures += 1
            else:
                failures = 0
                await self._hear_until_cut(connection)
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 10))
            await asyncio.sleep(pause * (0.5 + random.random()))

    async def _subscribe(self) -> AbstractConnection:
        connection = await self._link.open()
        try:
            async with asyncio.timeout(PONG_WITHIN):
                await connection.send_command("SUBSCRIBE", self._nudges, self._ended, check_health=False)
                for _ in range(2):
                    await connection.read_response(disable_decoding=True)
        except BaseException:
            await drop(connection)
            raise
        return connection

    async def _hear_until_cut(self, connection: AbstractConnection) -> None:
        self.times += 1
        self._is_on.set()
        if self.times > 1:
            self.bell.ring_all()  # nobody knows what happened meanwhile
        watching = asyncio.create_task(self._watch(connection))
        try:
            while True:
                self._take(await connection.read_response(disable_decoding=True))
        except ERRORS:
            pass
        finally:
            watching.cancel()
            self._is_on.clear()
            self._armed.clear()
            await drop(connection)

    async def _watch(self, connection: AbstractConnection) -> None:
        """A connection that is dead in silence is cut, so that the reading of it ends."""
        while True:
            self._is_heard = False
            await asyncio.sleep(PING_EVERY)
            if not self._is_heard:
                with contextlib.suppress(*ERRORS):
                    await connection.send_command("PING", check_health=False)
                await asyncio.sleep(PONG_WITHIN)
                if not self._is_heard:
                    await drop(connection)
                    return

    def _take(self, message: Any) -> None:
        self._is_heard = True
        if not isinstance(message, list) or message[0] != b"message":
            return
        topics = message[2].decode().split("\n") if message[1] == self._nudges else map(names.job, ids_in(message[2]))
        told = set(topics)
        self._armed -= {topic for topic in told if not topic.startswith("session:")}
        self.bell.ring(told)

    # --- asking to be told ----------------------------------------------------------------------------------------

    async def _keep_asking(self) -> None:
        while True:
            await self._has_wants.wait()
            await self._is_on.wait()
            self._has_wants.clear()
            wanted, self._wanted = self._wanted, set()
            try:
                await self._ask(wanted)
            except (*ERRORS, BrokerError):
                self._wanted |= wanted
                self._has_wants.set()
                await asyncio.sleep(FIRST_PAUSE)

    async def _ask(self, wanted: set[str]) -> None:
        times = self.times
        ids = [bytes.fromhex(topic.removeprefix(_JOB)) for topic in wanted if topic.startswith(_JOB)]
        there, ended = await self._arm([topic for topic in wanted if not topic.startswith(_JOB)], ids)
        found = {*there, *map(names.job, ended)}
        self.armed(wanted - found, times)
        self.bell.ring(found)
