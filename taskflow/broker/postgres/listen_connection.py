"""Listens for notifications, and tests whether they arrive.

A pooler in transaction mode accepts a LISTEN, but loses every notification.
So each listening connection is first tested with a notification.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

import asyncpg

from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.connect.server import ANSWER_TIMEOUT, PostgresTarget, drop, shown
from taskflow.broker.postgres.errors import ERRORS
from taskflow.model.errors import BrokerError

CHECK_INTERVAL: Final = 40.0
"""Seconds between tests of the connection. If it is dead, an idle worker learns about new jobs from the answers to
its heartbeats."""

HEARD_TIMEOUT: Final = 2.0
"""Seconds that a test notification may take to arrive. It usually takes about a millisecond."""

MAX_LOST_TESTS: Final = 2
"""How many consecutive test notifications must fail to arrive before notifications are considered lost rather than late."""

_TEST: Final = "test:"
"""The prefix of test messages. No topic begins with it, so no process of any version waits for it."""

_SAY: Final = "SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify($1, $2)"

POLL_INTERVAL: Final = 1.0
"""Seconds between polls while notifications do not arrive."""


class ListenConnection:
    """A connection that listens on channels inside an `async with` block. It passes each
    notification's message to the channel's function in `takes`, except for its own test messages."""

    def __init__(self, pool: ConnectionPool, takes: Mapping[str, Callable[[str], None]]) -> None:
        self._pool = pool
        self._takes = takes
        self._test = f"{_TEST}{secrets.token_hex(8)}"
        self._has_heard = False
        self._is_cut = False
        self._stirs = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._connection: asyncpg.Connection = await self._pool.open(for_listening=True)
        try:
            self._connection.add_termination_listener(self._cut)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                for channel in self._takes:
                    await self._connection.add_listener(channel, self._heard)
        except BaseException:
            drop(self._connection)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and not self._has_heard:  # behind a pooler, the next program would get a connection that still listens
                with contextlib.suppress(*ERRORS):
                    async with asyncio.timeout(1.0):
                        for channel in self._takes:
                            await self._connection.remove_listener(channel, self._heard)
        finally:
            drop(self._connection)

    async def hears(self, *, tests: int = MAX_LOST_TESTS) -> bool:
        """Send test notifications over the connections that run statements. Return True if one arrives. Raises BrokerError
        if they cannot be sent, or OSError if the listening connection breaks."""
        for _ in range(tests):
            await self._pool.fetch(_SAY, next(iter(self._takes)), self._test)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARD_TIMEOUT):
                    await self._stirs.wait()
                break
        if self._is_cut:
            raise ConnectionError("the listening connection was cut")
        return self._has_heard

    async def stay(self) -> None:
        """Listen until the connection breaks or stops answering."""
        while not self._is_cut:
            self._stirs.clear()
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._stirs.wait()
            except TimeoutError:
                try:
                    await self._connection.execute("SELECT 1", timeout=3.0)
                except ERRORS:
                    return

    def _heard(self, connection: object, pid: int, channel: str, payload: object) -> None:
        words = str(payload)
        if words == self._test:
            self._has_heard = True
            self._stirs.set()
        else:
            self._takes[channel](words)

    def _cut(self, connection: object) -> None:
        self._is_cut = True
        self._stirs.set()


async def trouble_with_listening(pool: ConnectionPool) -> str | None:
    """Return a message that explains why notifications do not arrive, or None if they do."""
    try:
        async with ListenConnection(pool, {secrets.token_hex(16): lambda words: None}) as listener:
            return None if await listener.hears(tests=1) else notifications_lost(pool.server)
    except (*ERRORS, BrokerError) as error:
        return listen_failed(pool.server, error)


def notifications_lost(server: PostgresTarget) -> str:
    if server.listen_at:
        return (
            f"PostgreSQL at {shown(server.listen_at)} (listen= in the broker URL) gets no notifications sent through {server}: {_POLLED}. "
            "It must be the same database, without a pooler in between"
        )
    return (
        f"PostgreSQL at {server} loses notifications without an error, like a pooler in transaction mode (pgbouncer): {_POLLED}. "
        "Name the server itself in the broker URL, for the listening connection: listen=host:5432"
    )


def listen_failed(server: PostgresTarget, error: Exception) -> str:
    place = f"{shown(server.listen_at)} (listen= in the broker URL)" if server.listen_at else str(server)
    return (
        f"PostgreSQL at {place} accepts no listening connection, although {server} answers: {_POLLED}. "
        f"It reports: {str(error) or type(error).__name__}"
    )


_POLLED: Final = f"workers poll every {POLL_INTERVAL:g} s instead, and jobs start that much later"
