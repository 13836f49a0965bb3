"""One event loop's connections to a server: one for all commands, and others that callers open for their own use.

The driver opens connections, and handles addresses, passwords and TLS. This module then packs commands and parses replies directly on the
transport: see resp.py. With the driver's streams, a process that sends one command at a time would take twice as long.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from taskflow.broker.redis.errors import broker_error
from taskflow.broker.redis.resp import UNFINISHED, a_reader, pack
from taskflow.broker.redis.scripts import Script
from taskflow.broker.redis.server import ANSWER_TIMEOUT, RedisTarget
from taskflow.broker.tasks import Deadline
from taskflow.model import wording
from taskflow.model.errors import BrokerUnavailable

Command = Sequence[Any]

ERRORS: Final = (exceptions.RedisError, OSError, EOFError)
"""Errors raised by the driver and by sockets. A TimeoutError is an OSError."""

MAX_DEDICATED_CONNECTIONS: Final = 8
"""The maximum number of connections, in one event loop, for calls that need a connection to themselves. Further calls wait."""

SYNC_TIMEOUT: Final = 2_500
"""Milliseconds within which the server must write changes to its disk."""


class ConnectionPool:
    """Sends commands over one connection, which it reopens after an error. Calls do not wait for each other's answers.

    A call that waits for the server's disk has a connection to itself. `before_the_end` is awaited when the loop ends.
    """

    def __init__(self, server: RedisTarget) -> None:
        self.server = server
        self._connection: CommandConnection | None = None
        self._connecting = asyncio.Lock()
        self._waiting: list[CommandConnection] = []
        self._apart = asyncio.Semaphore(MAX_DEDICATED_CONNECTIONS)
        self._is_closed = False
        self._end: AsyncGenerator[None] | None = None
        self.before_the_end: Callable[[], Awaitable[None]] | None = None

    async def run(self, script: Script, *arguments: bytes | str, ahead: Sequence[Command] = (), on_disk: bool = False) -> Any:
        """Run a script, and return its reply.

        `ahead`    commands to send before the script in the same write; if one fails, the call fails
        `on_disk`  wait until the server has written the changes to disk; raise BrokerUnavailable if that takes too long
        """
        ask, after = (self._ask_apart, (_ON_DISK,)) if on_disk else (self._ask, ())
        try:
            try:
                return await ask((*ahead, ("EVALSHA", script.sha, 1, *arguments), *after))
            except exceptions.NoScriptError:  # after a restart or SCRIPT FLUSH, EVAL loads the script again
                return await ask((*ahead, ("EVAL", script.text, 1, *arguments), *after))
        except ERRORS as error:
            raise broker_error(error, str(self.server)) from error

    async def ask(self, *command: Any) -> Any:
        """Send a command, and return its reply."""
        try:
            return await self._ask((command,))
        except ERRORS as error:
            raise broker_error(error, str(self.server)) from error

    async def ask_each(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands, and return the reply to each, with None for a command whose key has the wrong type."""
        try:
            replies = await self._ask(commands, each=True)
        except ERRORS as error:
            raise broker_error(error, str(self.server)) from error
        for reply in replies:
            if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
                raise broker_error(reply, str(self.server)) from reply
        return [None if isinstance(reply, Exception) else reply for reply in replies]

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
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await connect()
        except BaseException:
            await drop(connection)
            raise
        return connection

    async def close(self) -> None:
        self._is_closed = True
        if self._end is not None:
            await self._end.aclose()

    async def _ask(self, commands: Sequence[Command], *, each: bool = False) -> Any:
        """Send commands, and return the last reply, or all replies if `each` is True. If the connection was cut, send the commands once
        more on a new one, which is safe because every operation may be sent twice."""
        connection = self._connection
        if connection is not None and not connection.is_lost:
            try:
                return await self._over(connection, commands, each)
            except ERRORS as error:
                if not _is_cut(error):
                    raise
        return await self._over(await self._connected(), commands, each)

    async def _ask_apart(self, commands: Sequence[Command]) -> Any:
        """Like `_ask`, but use a connection that no other call uses meanwhile, and return the reply to the last command before WAITAOF.

        While a call waits for the server's disk, the server answers nothing else on its connection. Such calls may share one write to disk.
        """
        async with self._apart:
            connection = self._waiting.pop() if self._waiting else CommandConnection(await self.open())
            try:
                try:
                    return await self._over(connection, commands)
                except ERRORS as error:
                    if not _is_cut(error):
                        raise
                await connection.drop()
                connection = CommandConnection(await self.open())
                return await self._over(connection, commands)
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
                connection = CommandConnection(await self.open())
                if self._is_closed:  # `close` was called while this was connecting
                    await connection.drop()
                    raise BrokerUnavailable(wording.CLOSED)
                self._connection = connection
            return self._connection

    async def _over(self, connection: CommandConnection, commands: Sequence[Command], each: bool = False) -> Any:
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        replies = await connection.ask(commands)
        if each:
            return replies
        reply = replies[0] if len(replies) == 1 else _reply_among(commands, replies)
        if isinstance(reply, Exception):
            if isinstance(reply, exceptions.ReadOnlyError):  # the primary was demoted: a new connection may reach its successor
                await connection.drop()
            raise reply
        return reply

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        """Close the connections when the loop ends. This works because asyncio.run() and similar functions
        shut down asynchronous generators before they close the loop. `close` also ends this generator."""
        try:
            yield
        finally:
            self._is_closed = True
            if self.before_the_end is not None:
                await self.before_the_end()
            for connection in [*self._waiting, *([self._connection] if self._connection is not None else [])]:
                await connection.drop(nowait=not self.server.tls)  # closing TLS first sends a message, which may take up to 2 s


def _is_cut(error: Exception) -> bool:
    """Return True if the connection was probably gone before the command arrived: the error is neither an answer nor a timeout."""
    is_answer = isinstance(error, exceptions.ResponseError | exceptions.AuthenticationError | exceptions.BusyLoadingError)
    is_silence = isinstance(error, TimeoutError | exceptions.TimeoutError)
    return not is_answer and not is_silence


_ON_DISK: Final = ("WAITAOF", 1, 0, SYNC_TIMEOUT)


def _reply_among(commands: Sequence[Command], replies: list[Any]) -> Any:
    """Return the first error, or else the last reply, not counting that to WAITAOF. The errors include
    a failure to write to disk in time. After any of them, the connection can still be used."""
    for reply in replies:
        if isinstance(reply, Exception):
            return reply
    if commands[-1] is not _ON_DISK:
        return replies[-1]
    if not replies[-1][0]:
        return BrokerUnavailable(f"the server did not write the changes to its disk within {SYNC_TIMEOUT / 1000:g} s")
    return replies[-2]


# --- directly on the transport --------------------------------------------------------------------------------------


async def drop(connection: AbstractConnection, *, nowait: bool = True) -> None:
    with contextlib.suppress(*ERRORS, RuntimeError):
        await connection.disconnect(nowait=nowait)


class _Direct(asyncio.Protocol, ABC):
    """A protocol that takes over the transport of an open connection from the driver's streams, and still notifies them when the
    connection is lost. It calls `_take` with each reply, and `_fail` with the error that ended the connection."""

    def __init__(self, connection: AbstractConnection) -> None:
        untyped: Any = connection
        self._connection = connection
        self._transport: asyncio.Transport = untyped._writer.transport
        self._streams: Any = self._transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._reader = a_reader(untyped._parser.parse_error)
        self._lost: Exception | None = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    async def drop(self, *, nowait: bool = True) -> None:
        await drop(self._connection, nowait=nowait)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not UNFINISHED:
                self._take(reply)
        except exceptions.RedisError as error:  # not a reply, so what follows cannot be parsed either
            self._fail(error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or exceptions.ConnectionError("Connection closed by server."))
        self._streams.connection_lost(exc)

    @abstractmethod
    def _take(self, reply: Any) -> None: ...

    @abstractmethod
    def _fail(self, error: Exception) -> None: ...


class _Asked(NamedTuple):
    """A call in progress: `waiting` is its caller's future, `wanted` the number of replies, and `replies` those received so far."""

    waiting: asyncio.Future[list[Any]]
    wanted: int
    replies: list[Any]


class CommandConnection(_Direct):
    """A connection on which several calls may be in progress at once; the server answers them in order."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._asked: deque[_Asked] = deque()
        self._deadline = Deadline(self._give_up)
        super().__init__(connection)

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send commands and return a reply for each. An error from the server is returned as a reply. TimeoutError is raised if no answer
        arrives within `ANSWER_TIMEOUT` seconds of this call or the previous call's answer. The caller may stop awaiting at any time.

        If one call fails, the connection is lost, and all others fail with a ConnectionError.
        """
        waiting: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._lost is not None:
            waiting.set_exception(self._lost)
            return waiting
        if not self._asked:
            self._deadline.begin(ANSWER_TIMEOUT)
        self._asked.append(_Asked(waiting, len(commands), []))
        self._transport.write(pack(commands[0]) if len(commands) == 1 else b"".join(map(pack, commands)))
        return waiting

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.drop()
        super().connection_lost(exc)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception) and not isinstance(reply, exceptions.ResponseError):
            self._fail(reply)
            self._transport.abort()
        if not self._asked:
            return
        waiting, wanted, replies = self._asked[0]
        replies.append(reply)
        if len(replies) < wanted:
            return
        self._asked.popleft()
        if self._asked:
            self._deadline.begin(ANSWER_TIMEOUT)
        else:
            self._deadline.end()
        if not waiting.done():
            waiting.set_result(replies)

    def _fail(self, error: Exception) -> None:
        """Fail the first call with this error, and the others with a ConnectionError."""
        self._lost = self._lost or exceptions.ConnectionError(f"the connection was dropped: {str(error) or type(error).__name__}")
        asked, self._asked = self._asked, deque()
        for number, each in enumerate(asked):
            if not each.waiting.done():
                each.waiting.set_exception(error if number == 0 else self._lost)

    def _give_up(self) -> None:
        self._fail(TimeoutError())
        self._transport.abort()


class Subscription(_Direct):
    """A connection that passes messages to a function."""

    def __init__(self, connection: AbstractConnection, on_message: Callable[[Any], None]) -> None:
        self._on_message = on_message
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        super().__init__(connection)

    async def subscribe(self, channel: bytes) -> None:
        """Subscribe to a channel, and wait until the server confirms it."""
        self.send("SUBSCRIBE", channel)
        await self._confirmed

    async def listen(self) -> None:
        """Pass messages to `on_message` until the connection breaks, then raise the connection's error."""
        await self._cut

    def send(self, *command: Any) -> None:
        """Send a command. Its reply is passed to `on_message`, like any message."""
        if self._lost is not None:
            raise self._lost
        self._transport.write(pack(command))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._fail(reply)
        elif not self._confirmed.done() and reply[0] == b"subscribe":
            self._confirmed.set_result(None)
        else:
            self._on_message(reply)

    def _fail(self, error: Exception) -> None:
        self._lost = self._lost or error
        for waiting in (self._confirmed, self._cut):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # marks it as retrieved, in case nothing awaits it any more
