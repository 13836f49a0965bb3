"""One connection to a server, for commands or for a subscription.

The driver opens the connection, and handles addresses, passwords and TLS. If hiredis is installed, this module then packs commands and
parses replies directly on the transport. With the driver's streams, a process that sends one command at a time would take twice as long.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from taskflow.broker.deadline import Deadline

hiredis: Final[Any] = import_module("hiredis") if find_spec("hiredis") else None

Command = Sequence[Any]

ERRORS: Final = (exceptions.RedisError, OSError, EOFError)
"""Errors raised by the driver and by sockets. A TimeoutError is an OSError."""


class TooLong(Exception):
    """The replies have more bytes than the caller allows, or their size cannot be limited because hiredis is not installed."""


OnMessage = Callable[[Any], None]
"""A function that is called with each message."""


def connection_over(connection: AbstractConnection) -> CommandConnection:
    """Return an object that sends commands over a connection, which must be open and not used elsewhere."""
    return DriverConnection(connection) if hiredis is None else DirectConnection(connection)


def subscription_over(connection: AbstractConnection, on_message: OnMessage) -> Subscription:
    """Return an object that subscribes over a connection, which must be open and not used elsewhere."""
    return DriverSubscription(connection, on_message) if hiredis is None else DirectSubscription(connection, on_message)


async def drop(connection: AbstractConnection, *, nowait: bool = True) -> None:
    with contextlib.suppress(*ERRORS, RuntimeError):
        await connection.disconnect(nowait=nowait)


# --- through the driver -------------------------------------------------------------------------------------


class DriverConnection:
    """A connection through the driver's streams. Each call waits for the answer to the previous one."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self.is_lost = False

    async def ask(self, commands: Sequence[Command], within: float, most: int | None = None) -> list[Any]:
        """Send commands and return a reply for each. An error from the server is returned as a reply. Any
        other error is raised, and so is TimeoutError after `within` seconds; the connection is then lost.

        `most` limits the bytes of the replies: if more arrive, TooLong is raised. The driver's parser cannot enforce the limit, so here
        TooLong is raised without sending anything.
        """
        if most is not None:
            raise TooLong
        connection = self._connection
        async with self._lock:
            if self.is_lost:
                raise exceptions.ConnectionError("the connection is lost")
            try:
                async with asyncio.timeout(within):
                    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                    return [await self._reply() for _ in commands]
            except BaseException:  # a reply may still be on its way
                await self.drop()
                raise

    async def drop(self, *, nowait: bool = True) -> None:
        self.is_lost = True
        await drop(self._connection, nowait=nowait)

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except exceptions.ResponseError as error:
            return error


class DriverSubscription:
    def __init__(self, connection: AbstractConnection, on_message: OnMessage) -> None:
        self._connection = connection
        self._on_message = on_message

    async def subscribe(self, *channels: bytes) -> None:
        """Subscribe to channels, and wait until the server has confirmed it."""
        await self.send("SUBSCRIBE", *channels)
        for _ in channels:
            await self._connection.read_response(disable_decoding=True)

    async def listen(self) -> None:
        """Pass messages to `on_message` until the connection breaks, then raise the connection's error."""
        while True:
            self._on_message(await self._connection.read_response(disable_decoding=True))

    async def send(self, *command: Any) -> None:
        """Send a command. Its reply is passed to `on_message`, like any message."""
        await self._connection.send_command(*command, check_health=False)

    async def drop(self) -> None:
        await drop(self._connection)


# --- directly on the transport --------------------------------------------------------------------------------------

_UNFINISHED: Final = object()


class _Direct(asyncio.Protocol, ABC):
    """A protocol that takes over the transport from the driver's streams, and still notifies them when the connection is lost.

    It calls `_take` with each reply, and `_fail` with the error that ended the connection.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        untyped: Any = connection
        self._connection = connection
        self._transport: asyncio.Transport = untyped._writer.transport
        self._streams: Any = self._transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=exceptions.InvalidResponse, replyError=untyped._parser.parse_error, notEnoughData=_UNFINISHED
        )
        self._lost: Exception | None = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)

    async def drop(self, *, nowait: bool = True) -> None:
        await drop(self._connection, nowait=nowait)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _UNFINISHED:
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


class _Asked:
    """A call in progress: the replies so far, and how many more bytes may arrive."""

    __slots__ = ("most", "replies", "waiting", "wanted", "within")

    def __init__(self, waiting: asyncio.Future[list[Any]], wanted: int, within: float, most: int | None) -> None:
        self.waiting = waiting
        self.wanted = wanted
        self.within = within
        self.most = most
        self.replies = list[Any]()


class DirectConnection(_Direct):
    """A connection on which several calls may be in progress at once; the server answers them in order."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._asked: deque[_Asked] = deque()
        self._deadline = Deadline(self._give_up)
        super().__init__(connection)

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def ask(self, commands: Sequence[Command], within: float, most: int | None = None) -> asyncio.Future[list[Any]]:
        """Send commands and return their replies, like `DriverConnection.ask`. `within` is
        measured from the answer to the previous call. The caller may stop awaiting at any time.

        If one call fails, the connection is lost, and all others fail with a ConnectionError. Bytes that arrive together with the answer to
        the previous call do not count towards `most`.
        """
        waiting: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._lost is not None:
            waiting.set_exception(self._lost)
            return waiting
        if not self._asked:
            self._deadline.begin(within)
        self._asked.append(_Asked(waiting, len(commands), within, most))
        self._transport.write(hiredis.pack_command(commands[0]) if len(commands) == 1 else b"".join(map(hiredis.pack_command, commands)))
        return waiting

    def data_received(self, data: bytes) -> None:
        first = self._asked[0] if self._asked else None
        super().data_received(data)
        if first is not None and first.most is not None and self._asked and self._asked[0] is first:
            first.most -= len(data)
            if first.most < 0:
                self._fail(TooLong())
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.drop()
        super().connection_lost(exc)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception) and not isinstance(reply, exceptions.ResponseError):
            self._fail(reply)
            self._transport.abort()
        if not self._asked:
            return
        first = self._asked[0]
        first.replies.append(reply)
        if len(first.replies) < first.wanted:
            return
        self._asked.popleft()
        if self._asked:
            self._deadline.begin(self._asked[0].within)
        else:
            self._deadline.end()
        if not first.waiting.done():
            first.waiting.set_result(first.replies)

    def _fail(self, error: Exception) -> None:
        """Fail the first call with this error, and the others with a ConnectionError."""
        self._lost = self._lost or exceptions.ConnectionError(f"the connection was given up: {str(error) or type(error).__name__}")
        asked, self._asked = self._asked, deque()
        for number, each in enumerate(asked):
            if not each.waiting.done():
                each.waiting.set_exception(error if number == 0 else self._lost)

    def _give_up(self) -> None:
        self._fail(TimeoutError())
        self._transport.abort()


class DirectSubscription(_Direct):
    def __init__(self, connection: AbstractConnection, on_message: OnMessage) -> None:
        self._on_message = on_message
        self._unconfirmed = 0
        self._cut: asyncio.Future[None] | None = None
        self._confirmed: asyncio.Future[None] | None = None
        super().__init__(connection)

    async def subscribe(self, *channels: bytes) -> None:
        self._unconfirmed, self._confirmed = len(channels), self._loop.create_future()
        await self.send("SUBSCRIBE", *channels)
        await self._confirmed

    async def listen(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._cut = self._loop.create_future()
        await self._cut

    async def send(self, *command: Any) -> None:
        if self._lost is not None:
            raise self._lost
        self._transport.write(hiredis.pack_command(command))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._fail(reply)
        elif self._unconfirmed and reply[0] == b"subscribe":
            self._unconfirmed -= 1
            if not self._unconfirmed and self._confirmed is not None and not self._confirmed.done():
                self._confirmed.set_result(None)
        else:
            self._on_message(reply)

    def _fail(self, error: Exception) -> None:
        self._lost = self._lost or error
        for waiting in (self._confirmed, self._cut):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)


CommandConnection = DriverConnection | DirectConnection
Subscription = DriverSubscription | DirectSubscription
