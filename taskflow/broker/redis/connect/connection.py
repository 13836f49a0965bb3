"""One connection to a server, for commands or for a subscription.

The driver opens it, including addresses, passwords and TLS. If hiredis is installed, this module then packs commands and parses replies
directly on the transport. With the driver's streams, a process that sends one command at a time would need twice as long.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
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
"""Errors of the driver and of sockets. A timeout is an OSError."""


class TooLong(Exception):
    """The replies have more bytes than the caller allows. The connection cannot be used again."""


OnMessage = Callable[[Any], None]
"""Called with each message."""


def connection_over(connection: AbstractConnection) -> CommandConnection:
    """Take over a connection that is connected and not used elsewhere."""
    return DriverConnection(connection) if hiredis is None else DirectConnection(connection)


def subscription_over(connection: AbstractConnection, on_message: OnMessage) -> Subscription:
    """Take over a connection that is connected and not used elsewhere."""
    return DriverSubscription(connection, on_message) if hiredis is None else DirectSubscription(connection, on_message)


async def drop(connection: AbstractConnection, *, nowait: bool = True) -> None:
    with contextlib.suppress(*ERRORS, RuntimeError):
        await connection.disconnect(nowait=nowait)


# --- through the driver -------------------------------------------------------------------------------------


class DriverConnection:
    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def ask(self, commands: Sequence[Command], within: float, most: int | None = None) -> list[Any]:
        """Return a reply for each command; an error of the server is a reply. Raise any other error, and TimeoutError after `within`
        seconds.

        With `most`, raise TooLong as soon as more bytes arrive. The driver's parser cannot stop there, so it raises TooLong at once.
        """
        if most is not None:
            raise TooLong
        connection = self._connection
        async with asyncio.timeout(within):
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [await self._reply() for _ in commands]

    async def drop(self, *, nowait: bool = True) -> None:
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
        """Return when the server has confirmed the subscription."""
        await self.send("SUBSCRIBE", *channels)
        for _ in channels:
            await self._connection.read_response(disable_decoding=True)

    async def listen(self) -> None:
        """Run until the connection is cut, and raise that error."""
        while True:
            self._on_message(await self._connection.read_response(disable_decoding=True))

    async def send(self, *command: Any) -> None:
        """Send a command. Its reply is passed to `on_message`, like every message."""
        await self._connection.send_command(*command, check_health=False)

    async def drop(self) -> None:
        await drop(self._connection)


# --- directly on the transport --------------------------------------------------------------------------------------

_UNFINISHED: Final = object()


class _Direct(asyncio.Protocol, ABC):
    """Takes the transport over from the driver's streams, which it still notifies of the end.

    `_take` is called with each reply, `_fail` with the error that ended the connection.
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


class DirectConnection(_Direct):
    def __init__(self, connection: AbstractConnection) -> None:
        self._waiting: asyncio.Future[list[Any]] | None = None
        self._replies = list[Any]()
        self._wanted = 0
        self._most: int | None = None
        self._deadline = Deadline(self._give_up)
        super().__init__(connection)

    def ask(self, commands: Sequence[Command], within: float, most: int | None = None) -> asyncio.Future[list[Any]]:
        """Send commands, as in `DriverConnection.ask`. The caller awaits the replies before the next call. If it stops early, it drops the
        connection."""
        waiting = self._waiting = self._loop.create_future()
        if self._lost is not None:
            waiting.set_exception(self._lost)
            return waiting
        self._replies, self._wanted, self._most = [], len(commands), most
        self._transport.write(hiredis.pack_command(commands[0]) if self._wanted == 1 else b"".join(map(hiredis.pack_command, commands)))
        self._deadline.begin(within)
        return waiting

    def data_received(self, data: bytes) -> None:
        if self._most is not None:
            self._most -= len(data)
            if self._most < 0:
                self._fail(TooLong())
                self._transport.abort()
                return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.drop()
        super().connection_lost(exc)

    def _take(self, reply: Any) -> None:
        self._replies.append(reply)
        waiting = self._waiting
        if waiting is None or waiting.done() or len(self._replies) < self._wanted:
            return
        self._deadline.end()
        for each in self._replies:
            if isinstance(each, Exception) and not isinstance(each, exceptions.ResponseError):
                waiting.set_exception(each)
                return
        waiting.set_result(self._replies)

    def _fail(self, error: Exception) -> None:
        self._lost = self._lost or error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def _give_up(self) -> None:
        self._fail(TimeoutError())


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
