"""One event loop's connections to a server: one for all commands, and others that callers open for their own use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from taskflow.broker.redis.connect.connection import ERRORS, Command, CommandConnection, connection_over, drop, hiredis
from taskflow.broker.redis.connect.server import ANSWER_WITHIN, RedisTarget
from taskflow.broker.redis.errors import broker_error
from taskflow.broker.redis.scripts import Script
from taskflow.model import wording
from taskflow.model.errors import BrokerUnavailable

MOST_APART: Final = 8
"""The maximum number of connections for calls that need one to themselves, in one event loop. Further calls wait for one of them."""

ON_DISK_WITHIN: Final = 2_500
"""Milliseconds within which the server must write changes to its disk."""


class ConnectionPool:
    """Sends commands over one connection, which it reopens after an error. Calls do not wait for each other's answers.

    A call that waits for the server's disk has a connection to itself, and so does every call if hiredis is not installed.
    `before_the_end` is awaited when the loop ends.
    """

    def __init__(self, server: RedisTarget) -> None:
        self.server = server
        self._connection: CommandConnection | None = None
        self._connecting = asyncio.Lock()
        self._waiting: list[CommandConnection] = []
        self._apart = asyncio.Semaphore(MOST_APART)
        self._is_closed = False
        self._end: AsyncGenerator[None] | None = None
        self.before_the_end: Callable[[], Awaitable[None]] | None = None

    async def run(
        self,
        script: Script,
        *arguments: bytes | str,
        ahead: Sequence[Command] = (),
        on_disk: bool = False,
        within: float = ANSWER_WITHIN,
    ) -> Any:
        """Run a script, and return its reply.

        `ahead`    commands to send before the script in the same write; if one fails, the call fails
        `on_disk`  wait until the server has written the changes to disk; raise BrokerUnavailable if that takes too long
        """
        ask, after = (self._ask_apart, (_ON_DISK,)) if on_disk else (self._ask, ())
        try:
            try:
                return await ask((*ahead, ("EVALSHA", script.sha, 1, *arguments), *after), within)
            except exceptions.NoScriptError:  # after a restart or SCRIPT FLUSH, EVAL loads the script again
                return await ask((*ahead, ("EVAL", script.text, 1, *arguments), *after), within)
        except ERRORS as error:
            raise broker_error(error, str(self.server)) from error

    async def ask(self, *command: Any, within: float = ANSWER_WITHIN, most: int | None = None) -> Any:
        """Send a command, and return its reply. Raise TooLong if the reply has more than `most` bytes: see `CommandConnection.ask`."""
        return await self._ask_or_raise((command,), within, most=most)

    async def ask_each(self, commands: Sequence[Command], within: float = ANSWER_WITHIN) -> list[Any]:
        """Send commands and return the reply to each, or None if its key has the wrong type."""
        replies = await self._ask_or_raise(commands, within, each=True)
        errors = [reply for reply in replies if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply)]
        if errors:
            raise broker_error(errors[0], str(self.server)) from errors[0]
        return [None if isinstance(reply, Exception) else reply for reply in replies]

    async def _ask_or_raise(self, commands: Sequence[Command], within: float, *, each: bool = False, most: int | None = None) -> Any:
        try:
            return await self._ask(commands, within, each=each, most=most)
        except ERRORS as error:
            raise broker_error(error, str(self.server)) from error

    async def open(self) -> AbstractConnection:
        """Return a new connection for the exclusive use of the caller, who must drop it."""
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        if self._end is None:
            self._end = self._until_the_loop_ends()
            await anext(self._end)
        connection = self.server.connection()
        connect: Any = connection.connect  # untyped in some versions of the driver
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await connect()
        except BaseException:
            await drop(connection)
            raise
        return connection

    async def close(self) -> None:
        self._is_closed = True
        if self._end is not None:
            await self._end.aclose()

    # --- one command ------------------------------------------------------------------------------------------

    async def _ask(self, commands: Sequence[Command], within: float, *, each: bool = False, most: int | None = None) -> Any:
        """Send commands. Return the reply to the last one before WAITAOF, or all replies if `each` is True.

        If the connection was cut, send them once more on a new one: every verb may be sent twice.
        """
        if hiredis is None:
            return await self._ask_apart(commands, within, each=each, most=most)
        connection = self._connection
        if connection is not None and not connection.is_lost:
            try:
                return await self._over(connection, commands, within, each, most)
            except ERRORS as error:
                if not _is_cut(error):
                    raise
        return await self._over(await self._connected(), commands, within, each, most)

    async def _ask_apart(self, commands: Sequence[Command], within: float, *, each: bool = False, most: int | None = None) -> Any:
        """Send commands over a connection that no other call uses in the meantime, and return the reply.

        While a call waits for the server's disk, the server answers nothing else on its connection. Such
        calls share one write to the disk. Without hiredis, a connection carries one call at a time.
        """
        async with self._apart:
            connection = self._waiting.pop() if self._waiting else connection_over(await self.open())
            try:
                try:
                    return await self._over(connection, commands, within, each, most)
                except ERRORS as error:
                    if not _is_cut(error):
                        raise
                await connection.drop()
                connection = connection_over(await self.open())
                return await self._over(connection, commands, within, each, most)
            finally:
                if connection.is_lost or self._is_closed:
                    await connection.drop()
                else:
                    self._waiting.append(connection)

    async def _connected(self) -> CommandConnection:
        async with self._connecting:
            if self._connection is None or self._connection.is_lost:
                if self._connection is not None:
                    await self._connection.drop()
                self._connection = connection_over(await self.open())
            return self._connection

    async def _over(self, connection: CommandConnection, commands: Sequence[Command], within: float, each: bool, most: int | None) -> Any:
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        replies = await connection.ask(commands, within, most)
        reply = replies if each else replies[0] if len(replies) == 1 else _reply_among(commands, replies)
        if isinstance(reply, Exception):
            if isinstance(reply, exceptions.ReadOnlyError):  # the primary was demoted: a new connection may reach its successor
                await connection.drop()
            raise reply
        return reply

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        """Close the connection when the loop ends: asyncio.run() and similar functions shut down asynchronous generators
        before they close a loop."""
        try:
            yield
        finally:
            self._is_closed = True
            if self.before_the_end is not None:
                await self.before_the_end()
            for connection in [*self._waiting, *([self._connection] if self._connection is not None else [])]:
                await connection.drop(nowait=not self.server.tls)  # TLS first sends a closing message, for at most two seconds


def _is_cut(error: Exception) -> bool:
    """Return True if the connection was probably gone before the command reached the server: the error is
    neither an answer nor a timeout."""
    is_answer = isinstance(error, exceptions.ResponseError | exceptions.AuthenticationError | exceptions.BusyLoadingError)
    is_silence = isinstance(error, TimeoutError | exceptions.TimeoutError)
    return not is_answer and not is_silence


_ON_DISK: Final = ("WAITAOF", 1, 0, ON_DISK_WITHIN)


def _reply_among(commands: Sequence[Command], replies: list[Any]) -> Any:
    """Return the first error, or the reply to the last command before WAITAOF. The errors include
    a failure to write to disk in time. After any of them, the connection can still be used."""
    for reply in replies:
        if isinstance(reply, Exception):
            return reply
    if commands[-1] is not _ON_DISK:
        return replies[-1]
    if not replies[-1][0]:
        return BrokerUnavailable(f"the server did not write the changes to its disk within {ON_DISK_WITHIN / 1000:g} s")
    return replies[-2]
