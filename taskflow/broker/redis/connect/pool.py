"""An event loop's connections to a server, and the scripts sent over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from taskflow.broker import wording
from taskflow.broker.redis.connect.connection import ERRORS, Command, CommandConnection, connection_over, drop
from taskflow.broker.redis.connect.semaphore import Semaphore
from taskflow.broker.redis.connect.server import ANSWER_WITHIN, Server
from taskflow.broker.redis.errors import in_our_words
from taskflow.broker.redis.scripts import Script
from taskflow.model.errors import BrokerUnavailable

MOST_CONNECTIONS: Final = 16
"""In use at a time by one loop; what comes beyond waits for one of them."""

ON_DISK_WITHIN: Final = 2_500
"""Milliseconds."""


class ConnectionPool:
    """Connections are taken up and laid down again; one that failed, or was left in the middle of a reply, is not used again."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._idle: list[CommandConnection] = []
        self._in_use: set[CommandConnection] = set()
        self._turns = Semaphore(MOST_CONNECTIONS)
        self._is_closed = False
        self._end: AsyncGenerator[None] | None = None

    async def run(
        self,
        script: Script,
        *arguments: bytes | str,
        ahead: Sequence[Command] = (),
        on_disk: bool = False,
        within: float = ANSWER_WITHIN,
    ) -> Any:
        """A script's reply.

        `ahead`    commands that are sent with it, and before it; an error of one is the call's
        `on_disk`  not before the server has what it wrote on its disk; BrokerUnavailable when that takes long
        """
        after = (_ON_DISK,) if on_disk else ()
        try:
            return await self._ask((*ahead, ("EVALSHA", script.sha, 1, *arguments), *after), within)
        except exceptions.NoScriptError:  # a server that was restarted, or whose scripts were flushed: it learns it again by this
            return await self._in_our_words((*ahead, ("EVAL", script.text, 1, *arguments), *after), within)
        except ERRORS as error:
            raise in_our_words(error, str(self.server)) from error

    async def ask(self, *command: Any, within: float = ANSWER_WITHIN, most: int | None = None) -> Any:
        """Raises TooLong for a reply of more than `most` bytes: see `CommandConnection.ask`."""
        return await self._in_our_words((command,), within, most=most)

    async def ask_each(self, commands: Sequence[Command], within: float = ANSWER_WITHIN) -> list[Any]:
        """Return the reply to each of them, None for a key of a wrong type."""
        replies = await self._in_our_words(commands, within, each=True)
        errors = [reply for reply in replies if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply)]
        if errors:
            raise in_our_words(errors[0], str(self.server)) from errors[0]
        return [None if isinstance(reply, Exception) else reply for reply in replies]

    async def _in_our_words(self, commands: Sequence[Command], within: float, *, each: bool = False, most: int | None = None) -> Any:
        try:
            return await self._ask(commands, within, each=each, most=most)
        except ERRORS as error:
            raise in_our_words(error, str(self.server)) from error

    async def open(self) -> AbstractConnection:
        """A connection for the caller alone, who drops it."""
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

    def abandon(self) -> None:
        """Its loop is gone, or another process's: nothing of it can be awaited any more."""
        self._is_closed = True

    # --- one command ------------------------------------------------------------------------------------------

    async def _ask(self, commands: Sequence[Command], within: float, *, each: bool = False, most: int | None = None) -> Any:
        """The reply to the last of them, WAITAOF aside, or to `each`. A connection that lay idle may have been cut meanwhile: then once
        more, on a new one. Any verb may be sent twice."""
        if not self._turns.take():
            await self._turns.wait()
        try:
            if self._idle:
                try:
                    return await self._over(self._idle.pop(), commands, within, each, most)
                except ERRORS as error:
                    if not _is_cut(error):
                        if not isinstance(error, exceptions.ResponseError):  # silence: the others may be as dead
                            await self._drop_idle()
                        raise
                    await self._drop_idle()
            return await self._over(connection_over(await self.open()), commands, within, each, most)
        finally:
            self._turns.give()

    async def _over(self, wire: CommandConnection, commands: Sequence[Command], within: float, each: bool, most: int | None) -> Any:
        if self._is_closed:
            await wire.drop()
            raise BrokerUnavailable(wording.CLOSED)
        self._in_use.add(wire)
        reply: Any = None
        is_clean = False
        try:
            replies = await wire.ask(commands, within, most)
            reply = replies if each else replies[0] if len(replies) == 1 else _reply_among(commands, replies)
            is_clean = not isinstance(reply, exceptions.ReadOnlyError)  # a demoted primary: the next one may find the new
        finally:
            self._in_use.discard(wire)
            if is_clean and not self._is_closed:
                self._idle.append(wire)
            else:
                await wire.drop()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().drop()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        """asyncio.run() and the like end a loop's asynchronous generators before they close it: the connections go with it."""
        try:
            yield
        finally:
            self._is_closed = True
            for wire in [*self._idle, *self._in_use]:
                await wire.drop(nowait=not self.server.tls)  # TLS takes leave of the server first: two seconds at most
            self._idle.clear()


def _is_cut(error: Exception) -> bool:
    """The connection was gone before the command got anywhere, as far as can be told; not a refusal, and not a silence."""
    is_answer = isinstance(error, exceptions.ResponseError | exceptions.AuthenticationError | exceptions.BusyLoadingError)
    is_silence = isinstance(error, TimeoutError | exceptions.TimeoutError)
    return not is_answer and not is_silence


_ON_DISK: Final = ("WAITAOF", 1, 0, ON_DISK_WITHIN)


def _reply_among(commands: Sequence[Command], replies: list[Any]) -> Any:
    """An error is the reply too, the first one: the connection is as good as before after it."""
    for reply in replies:
        if isinstance(reply, Exception):
            return reply
    if commands[-1] is not _ON_DISK:
        return replies[-1]
    if not replies[-1][0]:
        return BrokerUnavailable(f"the server has not written it to its disk within {ON_DISK_WITHIN / 1000:g} s")
    return replies[-2]
