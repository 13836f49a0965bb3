"""A TCP proxy in front of a server that drops, delays and corrupts traffic, command by command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Self, TypeVar

from tests.support.servers import HOST, free_port

T = TypeVar("T")

_CHUNK: Final = 65_536

_TIMEOUT: Final = 10.0
"""Seconds that an operation in the proxy's thread may take. Whatever takes longer is considered stuck."""


class Kind(Enum):
    PASS = "pass"
    DELAY = "delay"
    DELAY_REPLY = "delay reply"
    DROP_COMMAND = "drop command"
    DROP_REPLY = "drop reply"
    GARBLE = "garble"


@dataclass(frozen=True)
class Fate:
    """What happens to one command, in its turn: the replies to earlier commands have reached the client."""

    kind: Kind
    seconds: float = 0.0


PASS: Final = Fate(Kind.PASS)

DROP_COMMAND: Final = Fate(Kind.DROP_COMMAND)
"""The server never receives the command, nor what was sent after it: the client's connection is cut."""

DROP_REPLY: Final = Fate(Kind.DROP_REPLY)
"""The command takes effect: once the server's reply is complete, the client's connection is cut. What was sent after it is lost."""

GARBLE: Final = Fate(Kind.GARBLE)
"""The command takes effect, and its reply begins with a byte that no reply begins with. The connection stays open."""


def delay(seconds: float) -> Fate:
    """The command waits this long on its way to the server, and so does what was sent after it."""
    return Fate(Kind.DELAY, seconds)


def delay_reply(seconds: float) -> Fate:
    """The command takes effect at once. Its reply waits this long on its way to the client, and so do later replies."""
    return Fate(Kind.DELAY_REPLY, seconds)


@dataclass(frozen=True)
class Command:
    """A command as a client sent it: `name` in capitals, and `number` from 1 over all connections of the proxy."""

    name: bytes
    args: tuple[bytes, ...]
    number: int


Rule = Callable[[Command], Fate]
"""Decides the fate of a command. Called once for each command, in the proxy's thread, in the order of arrival."""


@dataclass(frozen=True)
class Request:
    """A client's request: its bytes, and the words in it. A request without words is passed on without calling a rule."""

    raw: bytes
    words: tuple[bytes, ...] = ()


class Dialect:
    """Parses the streams of one connection. This base class knows no protocol, and passes data on as it arrives."""

    def requests(self, data: bytes) -> Iterator[Request]:
        yield Request(data)

    def replies(self, data: bytes) -> Iterator[bytes]:
        yield data

    def is_answer(self, reply: bytes) -> bool:
        """Return True if a part of the server's stream answers the oldest unanswered request."""
        return False


class Resp(Dialect):
    """Redis's protocol, version 2 (https://redis.io/docs/latest/develop/reference/protocol-spec/). Incomplete data is kept for later.

    Each command has one reply, because each SUBSCRIBE here names one channel. Messages to a subscriber look like replies, but are not.
    """

    def __init__(self) -> None:
        self._sent = b""
        self._received = b""
        self._is_subscribed = False

    def requests(self, data: bytes) -> Iterator[Request]:
        frames, self._sent = _frames(self._sent + data)
        for frame in frames:
            # Anything but an array is a line as typed by a person.
            yield Request(frame, tuple(_items(frame) if frame.startswith(b"*") else frame.split()))

    def replies(self, data: bytes) -> Iterator[bytes]:
        frames, self._received = _frames(self._received + data)
        yield from frames

    def is_answer(self, reply: bytes) -> bool:
        kind = next(_items(reply), b"") if reply.startswith(b"*") else b""
        self._is_subscribed |= kind == b"subscribe"
        return not (self._is_subscribed and kind == b"message")


_ENDING: Final = b"\r\n"


def _frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete values at the beginning of the data, and the remaining bytes."""
    frames, at = [], 0
    while (end := _end(data, at)) is not None:
        frames.append(data[at:end])
        at = end
    return frames, data[at:]


def _end(data: bytes, at: int) -> int | None:
    """Return where the value that begins at `at` ends, or None if it is incomplete."""
    line_end = data.find(_ENDING, at)
    if line_end < 0:
        return None
    kind, end = data[at : at + 1], line_end + len(_ENDING)
    if kind == b"$":
        size = int(data[at + 1 : line_end])
        end += size + len(_ENDING) if size >= 0 else 0  # a null has no content
        return end if end <= len(data) else None
    for _ in range(int(data[at + 1 : line_end]) if kind == b"*" else 0):
        if (whole := _end(data, end)) is None:
            return None
        end = whole
    return end


def _items(frame: bytes) -> Iterator[bytes]:
    at = frame.index(_ENDING) + len(_ENDING)
    while at < len(frame) and (end := _end(frame, at)) is not None:
        item, at = frame[at:end], end
        yield item.partition(_ENDING)[2][: -len(_ENDING)] if item.startswith(b"$") else item[1 : -len(_ENDING)]


class Proxy:
    """A proxy for the server at `host` and `port`, in a separate thread and on a separate port of 127.0.0.1.

    As a context manager, it listens inside the block. All methods may be called from any thread, and have taken effect when they return.
    If a rule raises an exception, its connection is cut, and the exception is raised at the end of the block.

    Args:
        rule: decides the fate of each command; may be replaced at any time (default: all commands pass).
        parse: creates the dialect of a connection (default: Redis's). With None the protocol is unknown: no rule is called, and
            traffic can only be cut, blackholed, or slowed down by `latency`.
    """

    def __init__(self, host: str, port: int, *, rule: Rule = lambda _command: PASS, parse: Callable[[], Dialect] | None = Resp) -> None:
        self.rule = rule
        self.latency = 0.0
        """Seconds that each request, or each packet if the protocol is unknown, waits on its way to the server."""
        self.counts: Counter[tuple[bytes, Fate]] = Counter()
        """How often a command with a name met with a fate."""
        self.port = free_port()
        self._server_at = (host, port)
        self._parse = parse or Dialect
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: dict[asyncio.Task[Any] | None, _Link] = {}
        self._road = asyncio.Event()
        self._road.set()
        self._troubles: list[BaseException] = []
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen_again()
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._wind_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._troubles and error[0] is None:
            raise self._troubles[0]

    def url(self, scheme: str = "redis", *, credentials: str = "", path: str = "") -> str:
        """Return the server's address through the proxy; `credentials` are "user:password"."""
        return f"{scheme}://{credentials}{'@' if credentials else ''}{HOST}:{self.port}{path}"

    def cut_all(self) -> None:
        """Close all connections. Data that was held back is lost."""
        self._do(self._cut_all())

    def blackhole(self) -> None:
        """Swallow all data in both directions, on existing and new connections, and also that one side has closed, until `heal` is
        called."""
        self._do(self._set_road(is_open=False))

    def heal(self) -> None:
        """Pass data on again. A connection that has lost data stays broken, because TCP delivers nothing beyond a gap."""
        self._do(self._set_road(is_open=True))

    def refuse(self) -> None:
        """Accept no new connections. Existing ones stay open."""
        self._do(self._refuse())

    def listen_again(self) -> None:
        """Accept connections again, on the same port."""
        self._do(self._listen())

    def fate_of(self, words: tuple[bytes, ...]) -> Fate:
        """Return the rule's decision about the next command. For the proxy's own connections, which cut themselves if it raises."""
        self._numbers += 1
        command = Command(words[0].upper(), words[1:], self._numbers)
        fate = self.rule(command)
        self.counts[command.name, fate] += 1
        return fate

    def _do(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(_TIMEOUT)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((HOST, self.port))
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        """Accept connections in one step. An asyncio.Server takes two, and leaves a socket open if it is closed between them."""
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            task = self._loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        link = _Link(self, self._parse(), self._road, *await asyncio.open_connection(sock=connection))
        self._links[asyncio.current_task()] = link
        try:
            await link.run(*self._server_at)
        except Exception as trouble:
            self._troubles.append(trouble)
        finally:
            del self._links[asyncio.current_task()]

    async def _set_road(self, *, is_open: bool) -> None:
        if is_open:
            self._road.set()
        else:
            self._road.clear()

    async def _cut_all(self) -> None:
        links = dict(self._links)
        for link in links.values():
            link.abort()
        if tasks := [task for task in links if task is not None]:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # the sockets are closed in the loop's next iteration

    async def _wind_up(self) -> None:
        await self._refuse()
        while self._tasks:
            await self._cut_all()


class _Link:
    """One client's connection, and the connection to the server that belongs to it."""

    def __init__(
        self, proxy: Proxy, dialect: Dialect, road: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._dialect = dialect
        self._road = road
        self._reader = reader
        self._writer = writer
        self._unanswered: deque[Fate] = deque()
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._sends_no_more = False
        self._is_dead = False
        self._over = asyncio.Event()

    async def run(self, host: str, port: int) -> None:
        """Pass data on until either side closes its connection, or the link is cut.

        Raises:
            Exception: the rule's exception.
        """
        try:
            await self._carry(*await asyncio.open_connection(host, port))
        except OSError:
            # While the connection is blackholed, the client must not notice that the server is down.
            await self._until_over(self._road.wait())
        finally:
            self._writer.close()

    def abort(self) -> None:
        """Cut the link now, whether or not the client has received everything that was sent to it."""
        self._over.set()
        self._writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._until_over(self._to_server(writer), self._to_client(reader))
        finally:
            # Closed rather than aborted: the kernel would discard data that was sent and that the server has not read yet.
            writer.close()

    async def _until_over(self, *works: Coroutine[Any, Any, object]) -> None:
        """Wait until one of the coroutines ends, or the link is over."""
        tasks = [asyncio.create_task(work) for work in (*works, self._over.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _to_server(self, writer: asyncio.StreamWriter) -> None:
        """Pass requests on. Their delay counts from their arrival, so that requests that are sent together arrive together."""
        arrived: asyncio.Queue[tuple[float, Request] | None] = asyncio.Queue()
        receiving = asyncio.create_task(self._receive(arrived))
        try:
            while (item := await arrived.get()) is not None:
                if not self._sends_no_more and not self._is_lost():
                    await self._send(*item, writer)
            await receiving
        finally:
            receiving.cancel()
        # While the connection is blackholed, the server must not notice that the client has closed it.
        await self._road.wait()

    async def _receive(self, arrived: asyncio.Queue[tuple[float, Request] | None]) -> None:
        try:
            async for data in _chunks(self._reader):
                now = asyncio.get_running_loop().time()
                for request in () if self._is_lost() else self._dialect.requests(data):
                    arrived.put_nowait((now, request))
        finally:
            arrived.put_nowait(None)

    async def _send(self, arrived_at: float, request: Request, writer: asyncio.StreamWriter) -> None:
        fate = self._proxy.fate_of(request.words) if request.words else PASS
        waits_until = arrived_at + self._proxy.latency
        await asyncio.sleep(waits_until - asyncio.get_running_loop().time() + (fate.seconds if fate.kind is Kind.DELAY else 0.0))
        self._sends_no_more = fate in (DROP_COMMAND, DROP_REPLY)
        if fate == DROP_COMMAND:
            await self._all_answered.wait()
            if not self._is_lost():
                self._over.set()
        elif not self._is_lost():
            self._expect(request, fate)
            writer.write(request.raw)
            await writer.drain()

    def _expect(self, request: Request, fate: Fate) -> None:
        if request.words:
            self._unanswered.append(fate)
            self._all_answered.clear()

    async def _to_client(self, reader: asyncio.StreamReader) -> None:
        async for data in _chunks(reader):
            for reply in self._dialect.replies(data):
                await self._answer(reply)
            await self._writer.drain()
        if self._is_lost():
            await self._over.wait()

    async def _answer(self, reply: bytes) -> None:
        """Handle a part of the server's stream according to the fate of the command that it answers, if it answers one."""
        is_answer = bool(self._unanswered) and self._dialect.is_answer(reply)
        fate = self._unanswered[0] if is_answer else PASS
        if fate.kind is Kind.DELAY_REPLY:
            await asyncio.sleep(fate.seconds)
        if not self._is_lost():
            if fate != DROP_REPLY:
                self._writer.write(b"?" + reply[1:] if fate == GARBLE else reply)
            else:
                self._over.set()
        if is_answer:
            self._unanswered.popleft()
            if not self._unanswered:
                self._all_answered.set()

    def _is_lost(self) -> bool:
        """True if data that arrives now is swallowed, along with everything after it."""
        self._is_dead = self._is_dead or not self._road.is_set()
        return self._is_dead


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(_CHUNK):
        yield data
