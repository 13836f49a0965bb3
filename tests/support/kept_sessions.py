"""PostgreSQL sessions that outlive the test that opened them.

A new session compiles our functions and plans their statements, which takes the server about 80 ms, more than most tests need. So the next
broker on the same schema gets a used session, reset, as from a pooler in session mode. Each still has a connection of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import socket
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import asyncpg
from asyncpg.protocol import Protocol

from taskflow.broker.postgres.connect.server import Address, PostgresTarget

MAX_KEPT: Final = 30
"""Sessions that wait for another use, per process. The server admits 100."""

RESET_TIMEOUT: Final = 0.5
"""Seconds for which a new broker waits for what the last one may have left running. Then it gets another session."""

_DONE: Final = b"as good as new"
_RESET: Final = b"ROLLBACK; CLOSE ALL; UNLISTEN *; RESET ALL; DEALLOCATE ALL; SELECT pg_advisory_unlock_all(), '%s'\0" % _DONE
_QUERY: Final = b"Q" + (len(_RESET) + 4).to_bytes(4, "big") + _RESET
_TERMINATE: Final = b"X\0\0\0\4"
_READY: Final = b"Z\0\0\0\5I"


class KeptTarget(PostgresTarget, frozen=True, kw_only=True):
    """A server whose sessions are kept for the next broker on this schema."""

    schema: str

    async def connect(self, places: Sequence[Address]) -> tuple[asyncpg.Connection, Address]:
        [place] = places
        loop: Any = _Loop(asyncio.get_running_loop(), (place.port, self.schema))
        return await self._connect_to(place, loop=loop), place


def end_sessions(port: int, schema: str) -> None:
    """End the sessions kept for this schema, which is about to be dropped."""
    for session in [each for each in _KEPT if each.key == (port, schema)]:
        _KEPT.remove(session)
        session.socket.close()


class _Session(NamedTuple):
    key: tuple[int, str]
    socket: socket.socket
    """Its connection, open for as long as the session is kept. Each user gets a duplicate."""

    greeting: bytes
    """What the server sent when the session began."""

    async def is_reset(self) -> bool:
        """Read the answers to the last user's statements and to the reset. Return False if one is missing."""
        answers = b""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(RESET_TIMEOUT):
                while not (_DONE in answers and answers.endswith(_READY)):
                    answers += (received := await asyncio.get_running_loop().sock_recv(self.socket, 65_536))
                    if not received:
                        return False
                return True
        return False

    def keep(self) -> None:
        """Keep the session, and reset it meanwhile."""
        try:
            is_asked = self.socket.send(_QUERY) == len(_QUERY)
        except OSError:
            is_asked = False
        if not is_asked:
            self.socket.close()
            return
        _KEPT.append(self)
        if len(_KEPT) > MAX_KEPT:
            _KEPT.pop(0).socket.close()


_KEPT: Final[list[_Session]] = []


@atexit.register
def _end_all() -> None:
    for session in _KEPT:
        session.socket.close()


class _Loop:
    """An event loop whose connections to PostgreSQL may go on with a kept session."""

    def __init__(self, loop: asyncio.AbstractEventLoop, key: tuple[int, str]) -> None:
        self._loop, self._key = loop, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> tuple[Any, asyncio.Protocol]:
        protocol: Any = factory()
        if not isinstance(protocol, Protocol):  # it cancels a statement
            return await self._loop.create_connection(lambda: protocol, host, port)
        session = await self._kept()
        if session is None:
            opened = socket.create_connection((host, port))
            opened.setblocking(False)
            session = _Session(self._key, opened, b"")
        users = session.socket.dup()
        try:
            connected, greeting = await self._loop.create_connection(lambda: _Greeting(session, protocol), sock=users)
        except BaseException:  # also if the task is cancelled
            users.close()
            session.socket.close()
            raise
        greeting.begin(connected)
        return connected, protocol

    async def _kept(self) -> _Session | None:
        for session in [each for each in reversed(_KEPT) if each.key == self._key]:
            if session in _KEPT:  # no other task has taken it meanwhile
                _KEPT.remove(session)
                is_reset = False
                try:
                    is_reset = await session.is_reset()
                finally:  # also if the task is cancelled
                    if not is_reset:
                        session.socket.close()
                if is_reset:
                    return session
        return None


class _Greeting(asyncio.Protocol):
    """Receives what the server sends when a session begins, or repeats it."""

    def __init__(self, session: _Session, protocol: Any) -> None:
        self._session, self._protocol, self._received = session, protocol, b""

    def begin(self, transport: Any) -> None:
        greeting = self._session.greeting
        self._transport, self._shown = transport, _Transport(transport, self._session)
        self._shown.swallows = bool(greeting)
        self._protocol.connection_made(self._shown)
        self._shown.swallows = False
        if greeting:
            transport.set_protocol(self._protocol)
            self._protocol.data_received(greeting)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(_READY):
            self._shown.session = self._session._replace(greeting=self._received)
            self._transport.set_protocol(self._protocol)
        self._protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


class _Transport:
    """A user's connection. Its end leaves the session to the next user."""

    session: _Session | None

    def __init__(self, transport: Any, session: _Session) -> None:
        self._transport, self.session, self.swallows = transport, session, False
        # If the server or the event loop ends the connection, nothing calls abort(). The socket must then be closed before it is collected.
        self._end = weakref.finalize(self, session.socket.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: Any) -> None:
        if data == _TERMINATE:
            self.abort()
        elif not self.swallows:
            self._transport.write(data)

    def abort(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            self._end.detach()
            if session.greeting and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
                session.keep()
            else:
                session.socket.close()
        self._transport.abort()
