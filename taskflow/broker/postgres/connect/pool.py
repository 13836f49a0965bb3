"""Pools an event loop's connections to a server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import asyncpg

from taskflow.broker.postgres.connect.server import ANSWER_TIMEOUT, Address, PostgresTarget, drop as drop, is_only_read
from taskflow.broker.postgres.errors import ERRORS, broker_error, is_cut, is_lost, is_read_only, is_stale, was_cancelled
from taskflow.model import wording
from taskflow.model.errors import BrokerError, BrokerUnavailable

MAX_CONNECTIONS: Final = 8
"""The maximum number of connections on which one loop runs statements at a time. Further calls wait."""

SURPLUS_TTL: Final = 30.0
"""In each window of this many seconds, or longer if there are few statements, the pool counts the connections that stayed idle throughout.
At the first statement after the window, it drops as many, but keeps at least one connection."""

MAX_TRIES: Final = 5


class ConnectionPool:
    """A pool of connections for one event loop. A connection that failed, or whose answer was not read to the end, is dropped.

    If there are several addresses, the pool prefers the last known primary. When another address becomes the primary, idle and
    listening connections are dropped.
    """

    def __init__(self, server: PostgresTarget, before_the_end: Callable[[], Awaitable[None]] | None = None, *, schema: str = "") -> None:
        """`before_the_end` is awaited when the loop ends, while connections are still open. `schema` is named in error messages."""
        self.server = server
        self._schema = schema
        self._before_the_end = before_the_end
        self._idle: list[asyncpg.Connection] = []
        self._surplus = 0
        self._look_at = time.monotonic() + SURPLUS_TTL
        self._asked: WeakKeyDictionary[asyncpg.Connection, set[str]] = WeakKeyDictionary()
        self._in_use: set[asyncpg.Connection] = set()
        self._listening: WeakSet[asyncpg.Connection] = WeakSet()
        self._primary: Address | None = None
        self._semaphore = asyncio.Semaphore(MAX_CONNECTIONS)
        self._is_closed = False
        self._end: AsyncGenerator[None] | None = None

    async def fetch(self, statement: str, *arguments: Any, within: float = ANSWER_TIMEOUT) -> list[asyncpg.Record]:
        """Run a statement and return its rows. Like any operation, it may be sent more than once. Raises ValueError for a value that its
        column cannot hold, and otherwise BrokerError."""
        try:
            return await self._fetch(statement, arguments, within)
        except ERRORS as error:
            if isinstance(error, ValueError):  # the column's type cannot express this value, so no store will ever accept it
                raise
            raise self.broker_error(error) from error

    @contextlib.asynccontextmanager
    async def transaction(self, within: float = ANSWER_TIMEOUT) -> AsyncGenerator[Callable[..., Awaitable[list[asyncpg.Record]]]]:
        """Open a transaction that sees others' commits, for at most `within` seconds. Yield a function that runs a statement in it."""
        try:
            async with self._semaphore:
                connection = await self._acquire("BEGIN")
                self._in_use.add(connection)
                try:
                    async with asyncio.timeout(within), connection.transaction(isolation="read_committed"):
                        yield connection.fetch
                except BaseException:
                    drop(connection)
                    raise
                else:
                    self._idle.append(connection)
                finally:
                    self._in_use.discard(connection)
        except ERRORS as error:
            raise self.broker_error(error) from error

    def broker_error(self, error: Exception) -> BrokerError:
        return broker_error(error, str(self.server), self._schema, self.server.user)

    async def open(self, *, for_listening: bool = False) -> asyncpg.Connection:
        """Return a connection for the caller alone, who must drop it. With `for_listening`, it leads to `listen_at`, if that is set."""
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        if self._end is None:
            self._end = self._until_the_loop_ends()
            await anext(self._end)
        if for_listening and self.server.listen_at:
            connection, _ = await self.server.connect(self.server.listen_at)
            return connection
        connection, place = await self.server.connect(self._places())
        if place != self._primary:
            self._move_to(place)
        if for_listening:
            self._listening.add(connection)
        return connection

    def put_back(self, connection: asyncpg.Connection) -> None:
        """Put a connection from `open` into the pool. Its settings must be unchanged. Do nothing if the
        pool is closed, or if there are several addresses, because another one may be the primary by now."""
        if not self._is_closed and not self.server.others:
            self._idle.append(connection)

    def has(self, connection: asyncpg.Connection) -> bool:
        """Return True if the connection is idle in this pool."""
        return connection in self._idle

    async def close(self) -> None:
        self._is_closed = True
        if self._end is not None:
            await self._end.aclose()

    # --- one statement ------------------------------------------------------------------------------------------

    async def _fetch(self, statement: str, arguments: tuple[Any, ...], within: float) -> list[asyncpg.Record]:
        ends_at = time.monotonic() + within
        connection: asyncpg.Connection | None = None
        async with self._semaphore:
            for tries in range(1, MAX_TRIES + 1):
                connection = await self._acquire(statement, connection)
                try:
                    rows: list[asyncpg.Record] = await self._over(connection, partial(connection.fetch, statement, *arguments), within)
                    return rows
                except ERRORS as error:
                    if is_read_only(error):
                        self._drop_idle()  # no longer a primary, and the other connections lead to the same server
                    is_to_be_tried = (
                        is_cut(error)
                        or is_stale(error)
                        or (is_read_only(error) and self.server.others)
                        or (was_cancelled(error) and time.monotonic() < ends_at)
                    )
                    if tries == MAX_TRIES or not is_to_be_tried:
                        raise
                    if is_lost(error) or is_stale(error):
                        self._drop_idle()  # the server was unavailable or migrated, so the other connections are lost or stale too
        raise AssertionError("unreachable")

    async def _acquire(self, statement: str, last: asyncpg.Connection | None = None) -> asyncpg.Connection:
        """Take a connection from the pool, or open one. Prefer `last`, then a connection that has run the same statement and few others.

        A session plans a statement on its first run, which takes the server ten times as long as the call itself.
        """
        while self._idle:
            connection = last if last in self._idle else min(self._idle, key=partial(self._strangeness, statement))
            self._idle.remove(connection)
            if not connection.is_closed():
                break
        else:
            connection = await self.open()
        self._surplus = min(self._surplus, len(self._idle))
        self._asked.setdefault(connection, set()).add(statement)
        return connection

    def _strangeness(self, statement: str, connection: asyncpg.Connection) -> tuple[bool, int]:
        asked = self._asked.get(connection, ())
        return statement not in asked, len(asked)

    async def _over(self, connection: asyncpg.Connection, ask: Callable[[], Awaitable[Any]], within: float) -> Any:
        if self._is_closed:
            drop(connection)
            raise BrokerUnavailable(wording.CLOSED)
        self._in_use.add(connection)
        is_clean = False
        try:
            async with asyncio.timeout(within):
                answer = await ask()
            if self.server.others and is_only_read(connection):
                raise asyncpg.ReadOnlySQLTransactionError("it has become read-only: another server may be the primary")
            is_clean = True
            return answer
        except asyncpg.PostgresError as error:
            spoils = (error.sqlstate or "")[:2] in ("57", "25", "08") and not was_cancelled(error)
            is_clean = not (connection.is_closed() or is_stale(error) or spoils)
            raise
        finally:
            self._in_use.discard(connection)
            if is_clean and not self._is_closed:
                self._idle.append(connection)
                if time.monotonic() >= self._look_at:
                    self._drop_surplus()
            else:
                drop(connection)

    def _places(self) -> list[Address]:
        """Return the addresses, beginning with the last known primary."""
        return sorted(self.server.places, key=lambda place: place != self._primary)

    def _move_to(self, place: Address) -> None:
        """Make another address the primary. Drop the idle connections, and the
        listening ones, which would receive no notifications from the new primary."""
        self._primary = place
        self._drop_idle()
        for connection in list(self._listening):
            drop(connection)

    def _drop_surplus(self) -> None:
        """Drop as many connections as were idle throughout since the last check, those idle longest first, but keep at least one."""
        surplus = min(self._surplus, len(self._idle) - 1)
        for connection in self._idle[:surplus]:
            drop(connection)
        del self._idle[:surplus]
        self._surplus, self._look_at = len(self._idle), time.monotonic() + SURPLUS_TTL

    def _drop_idle(self) -> None:
        while self._idle:
            drop(self._idle.pop())

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        """Close all connections when the loop ends. This works because asyncio.run() and similar functions
        shut down asynchronous generators before they close the loop. `close` also ends this generator."""
        try:
            yield
        finally:
            if self._before_the_end is not None:
                await self._before_the_end()
            self._is_closed = True
            idle, self._idle = self._idle, []
            for connection in self._in_use:
                drop(connection)
            for connection in idle:
                with contextlib.suppress(*ERRORS, TimeoutError):
                    await connection.close(timeout=1.0)
