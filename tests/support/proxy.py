"""A TCP proxy before a server, that loses, holds back and spoils what passes, command by command."""

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
"""Seconds that an act may take in the proxy's thread. What takes this long has hung."""


class Kind(Enum):
    PASS = "pass"
    DELAY = "delay"
    DELAY_REPLY = "delay reply"
    DROP_COMMAND = "drop command"
    DROP_REPLY = "drop reply"
    GARBLE = "garble"


@dataclass(frozen=True)
class Fate:
    """What becomes of one command. It befalls the command in its turn: the replies of those before it have reached the client."""

    kind: Kind
    seconds: float = 0.0


PASS: Final = Fate(Kind.PASS)

DROP_COMMAND: Final = Fate(Kind.DROP_COMMAND)
"""The server never sees it, nor what was sent behind it: the client's connection is cut."""

DROP_REPLY: Final = Fate(Kind.DROP_REPLY)
"""It takes effect: the server's reply comes whole, and then the client's connection is cut. What was sent behind it is lost."""

GARBLE: Final = Fate(Kind.GARBLE)
"""It takes effect, and its reply begins with a byte that no reply begins with. The connection stays."""


def delay(seconds: float) -> Fate:
    """It waits so long on its way to the server, and what was sent behind it waits too."""
    return Fate(Kind.DELAY, seconds)


def delay_reply(seconds: float) -> Fate:
    """It takes effect at once; the reply waits so long on its way to the client, and those behind it wait too."""
    return Fate(Kind.DELAY_REPLY, seconds)


@dataclass(frozen=True)
class Command:
    """A command as a client sent it: `name` in capitals, and `number` from 1 over all connections of the proxy."""

    name: bytes
    args: tuple[bytes, ...]
    number: int


Rule = Callable[[Command], Fate]
"""Asked once for each command, in the proxy's thread, in the order of arrival."""


@dataclass(frozen=True)
class Request:
    """What a client sent: its bytes, and the words in it. One without words is passed on, and no rule is asked."""

    raw: bytes
    words: tuple[bytes, ...] = ()


class Dialect:
    """How the streams of one connection are taken apart. Of this one nothing is known: what comes is passed on as it comes."""

    def requests(self, data: bytes) -> Iterator[Request]:
        yield Request(data)

    def replies(self, data: bytes) -> Iterator[bytes]:
        yield data

    def is_answer(self, reply: bytes) -> bool:
        """Return True if a part of the server's stream answers the oldest request without an answer."""
        return False


class Resp(Dialect):
    """Redis's protocol, version 2 (https://redis.io/docs/latest/develop/reference/protocol-spec/). What is incomplete is kept.

    Each command has one reply, as each SUBSCRIBE here names one channel. What a subscriber is sent looks like a reply, but is none.
    """

    def __init__(self) -> None:
        self._sent = b""
        self._received = b""
        self._is_subscribed = False

    def requests(self, data: bytes) -> Iterator[Request]:
        frames, self._sent = _frames(self._sent + data)
        for frame in frames:
            # What is no array is a line as one types it.
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
    """The whole values that it begins with, and the rest."""
    frames, at = [], 0
    while (end := _end(data, at)) is not None:
        frames.append(data[at:end])
        at = end
    return frames, data[at:]


def _end(data: bytes, at: int) -> int | None:
    """Where the value ends that begins there, None where it is not whole."""
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
    """Stands before the server at `host` and `port`, in a thread of its own, on a port of its own of 127.0.0.1.

    As a context manager it listens inside. All its methods may be called from any thread, and have taken effect when they return.
    What a rule raised is raised at the end; the connection that it was asked for is cut.

    Args:
        rule: decides what becomes of each command; may be replaced at any time. By default all pass.
        parse: makes the dialect of a connection, by default Redis's. None knows none: no rule is asked, and what is sent can
            only be cut, blackholed, and slowed down by `latency`.
    """

    def __init__(self, host: str, port: int, *, rule: Rule = lambda _command: PASS, parse: Callable[[], Dialect] | None = Resp) -> None:
        self.rule = rule
        self.latency = 0.0
        """Seconds that each request, or each packet where no dialect is known, waits on its way to the server."""
        self.counts: Counter[tuple[bytes, Fate]] = Counter()
        """How often a command of that name was given that fate."""
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
        """The server's address by way of the proxy; `credentials` are "user:password"."""
        return f"{scheme}://{credentials}{'@' if credentials else ''}{HOST}:{self.port}{path}"

    def cut_all(self) -> None:
        """Close all connections. What was held back is lost."""
        self._do(self._cut_all())

    def blackhole(self) -> None:
        """Swallow all that is sent either way, on old connections and new ones, and also that one side has closed, until healed."""
        self._do(self._set_road(is_open=False))

    def heal(self) -> None:
        """Carry again. A connection that has lost anything never does, as TCP carries nothing beyond a hole."""
        self._do(self._set_road(is_open=True))

    def refuse(self) -> None:
        """Accept no new connections. The old ones stay."""
        self._do(self._refuse())

    def listen_again(self) -> None:
        """Accept connections, on the same port as ever."""
        self._do(self._listen())

    def fate_of(self, words: tuple[bytes, ...]) -> Fate:
        """What the rule says of the next command. For the proxy's own connections, which cut themselves where it raises."""
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
        """In one step. An asyncio.Server takes two, and leaves a socket open where it is closed between them."""
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
        await asyncio.sleep(0)  # the sockets are closed in the loop's next turn

    async def _wind_up(self) -> None:
        await self._refuse()
        while self._tasks:
            await self._cut_all()


class _Link:
    """One client's connection and the one to the server that belongs to it."""

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
        """Carry until either side ends it, or it is cut.

        Raises:
            Exception: what the rule raised.
        """
        try:
            await self._carry(*await asyncio.open_connection(host, port))
        except OSError:
            # While the road is closed nobody hears of it that the server is away.
            await self._until_over(self._road.wait())
        finally:
            self._writer.close()

    def abort(self) -> None:
        """Cut it now, whether or not the client has taken all that was sent to it."""
        self._over.set()
        self._writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._until_over(self._to_server(writer), self._to_client(reader))
        finally:
            # Not aborted: the kernel would throw away what the server has not read yet, and it was sent.
            writer.close()

    async def _until_over(self, *works: Coroutine[Any, Any, object]) -> None:
        """Until one of them ends, or the link is over."""
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
        """The time on the way counts from the arrival, so that requests that are sent together arrive together."""
        arrived: asyncio.Queue[tuple[float, Request] | None] = asyncio.Queue()
        receiving = asyncio.create_task(self._receive(arrived))
        try:
            while (item := await arrived.get()) is not None:
                if not self._sends_no_more and not self._is_lost():
                    await self._send(*item, writer)
            await receiving
        finally:
            receiving.cancel()
        # The server does not hear of a client's end while the road is closed.
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
        """Do with a part of the server's stream as the fate says of the command that it answers, if it answers one."""
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
        """Whether what comes now is swallowed, and with it all that comes after."""
        self._is_dead = self._is_dead or not self._road.is_set()
        return self._is_dead


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(_CHUNK):
        yield data
