"""One connection, over which a command goes and its reply comes.

The driver opens it: it knows about addresses, passwords, TLS. From then on, where hiredis is installed, commands are packed and replies
parsed here, straight on the transport: the driver's streams take a process that sends one command at a time as long again as all else
that it does for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

hiredis: Final[Any] = import_module("hiredis") if find_spec("hiredis") else None

Command = Sequence[Any]

ERRORS: Final = (exceptions.RedisError, OSError, EOFError)
"""What the driver raises, and we like it; a timeout is an OSError."""


class Wire(Protocol):
    async def ask(self, commands: Sequence[Command], within: float) -> list[Any]:
        """A reply for each command, errors of the server among them; any other error is raised, TimeoutError after so many seconds."""
        ...

    async def drop(self, *, nowait: bool = True) -> None: ...


def wire_over(connection: AbstractConnection) -> Wire:
    """`connection` is connected, and nobody else's from now on."""
    return DriversWire(connection) if hiredis is None else StraightWire(connection)


async def drop(connection: AbstractConnection, *, nowait: bool = True) -> None:
    with contextlib.suppress(*ERRORS, RuntimeError):
        await connection.disconnect(nowait=nowait)


class DriversWire:
    """By the driver's own means."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def ask(self, commands: Sequence[Command], within: float) -> list[Any]:
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


_UNFINISHED: Final = object()


class StraightWire(asyncio.Protocol):
    """Takes the transport over from the driver's streams, which still hear of its end."""

    def __init__(self, connection: AbstractConnection) -> None:
        untyped: Any = connection
        self._connection = connection
        self._transport: asyncio.Transport = untyped._writer.transport
        self._streams: Any = self._transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=exceptions.InvalidResponse, replyError=untyped._parser.parse_error, notEnoughData=_UNFINISHED
        )
        self._waiting: asyncio.Future[list[Any]] | None = None
        self._replies = list[Any]()
        self._wanted = 0
        self._lost: Exception | None = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.connection_lost(None)

    async def ask(self, commands: Sequence[Command], within: float) -> list[Any]:
        if self._lost is not None:
            raise self._lost
        self._waiting, self._replies, self._wanted = self._loop.create_future(), [], len(commands)
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))
        timer = self._loop.call_later(within, self._give_up)
        try:
            replies = await self._waiting
        finally:
            self._waiting = None
            timer.cancel()
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, exceptions.ResponseError):
                raise reply
        return replies

    async def drop(self, *, nowait: bool = True) -> None:
        await drop(self._connection, nowait=nowait)

    # --- what the transport calls -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _UNFINISHED:
                self._take(reply)
        except exceptions.RedisError as error:  # what comes is no reply: nor is it what comes after
            self._fail(error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or exceptions.ConnectionError("Connection closed by server."))
        self._streams.connection_lost(exc)

    def _take(self, reply: Any) -> None:
        self._replies.append(reply)
        if self._waiting is not None and not self._waiting.done() and len(self._replies) == self._wanted:
            self._waiting.set_result(self._replies)

    def _fail(self, error: Exception) -> None:
        self._lost = self._lost or error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def _give_up(self) -> None:
        self._fail(TimeoutError())
