"""Delivers wake-ups by publish/subscribe, with a separate channel for each listener.

If every job woke every worker, a busy fleet would spend most of its time on wake-ups. So the server keeps lists of the listeners that
are waiting for jobs, and nudges only as many of them as there are new jobs. A claim that finds too few jobs also puts its listener on
these lists. Any other listener calls the script `arm`, which also returns the topics for which something has already happened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgpack

from taskflow.broker import topics as names
from taskflow.broker.listener import Listener
from taskflow.broker.redis.connections import ERRORS, ConnectionPool, Subscription
from taskflow.broker.redis.packing import pack
from taskflow.broker.redis.records import ended_record
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import Record

PING_INTERVAL: Final = 25.0
"""Seconds without a message before the subscription sends PING."""

PONG_TIMEOUT: Final = 3.0
"""Seconds to wait for the answer to PING or SUBSCRIBE."""


class RedisListener(Listener):
    def __init__(self, pool: ConnectionPool, prefix: str, call: Callable[[str, bytes], Awaitable[Any]]) -> None:
        super().__init__(self._arm_topics, ERRORS)
        self._pool = pool
        self._call = call
        self._channel = channel(prefix, self.id)
        self._has_received = False

    async def _arm_topics(self, topics: list[str], ids: list[bytes]) -> tuple[list[str], list[bytes]]:
        available, ended = await self._call("arm", pack([topics, ids, self.id]))
        return [topic.decode() for topic in available], [ended[at : at + ID_BYTES] for at in range(0, len(ended), ID_BYTES)]

    async def receive(self, on_subscribed: Callable[[], None]) -> None:
        subscription = Subscription(await self._pool.open(), self._take)
        try:
            async with asyncio.timeout(PONG_TIMEOUT):
                await subscription.subscribe(self._channel)
            on_subscribed()
            watching = asyncio.create_task(self._watch(subscription))
            try:
                await subscription.listen()
            finally:
                watching.cancel()
        finally:
            await subscription.drop()

    async def _watch(self, subscription: Subscription) -> None:
        """Send PING when no messages arrive. If the server does not answer, drop the connection, which ends `listen`."""
        while True:
            self._has_received = False
            await asyncio.sleep(PING_INTERVAL)
            if not self._has_received:
                with contextlib.suppress(*ERRORS):
                    subscription.send("PING")
                await asyncio.sleep(PONG_TIMEOUT)
                if not self._has_received:
                    await subscription.drop()
                    return

    def _take(self, message: Any) -> None:
        self._has_received = True
        if not isinstance(message, list) or message[0] != b"message":
            return
        payload = message[2]
        if payload.startswith(ENDED):
            self.received_ends(_ended_in(payload[1:]))
            return
        topic = payload.decode(errors="replace")
        self.received([topic], disarms=not topic.startswith(_SESSION))


def _ended_in(packed: bytes) -> dict[bytes, Record | None]:
    """Return the record of each job whose end the message announces, with None for a record that was not sent or cannot be read."""
    flat = msgpack.unpackb(packed, raw=True)
    return {job_id: ended_record(job_id, stored) for job_id, stored in zip(flat[::2], flat[1::2], strict=True)}


def channel(prefix: str, listener: str) -> bytes:
    return f"{prefix}n:{listener}".encode()


ENDED: Final = b"\0"
"""The first byte of a message about ended jobs. All other messages are topics."""

_SESSION: Final = names.session(b"")
