"""`--health-port`: serves /live and /ready over HTTP. A separate thread answers, even while the event loop is blocked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from taskflow.model.clock import start_thread
from taskflow.model.errors import ConfigurationError
from taskflow.worker.health import HealthCheck

log: Final = logging.getLogger("taskflow.worker")

LARGEST_REQUEST: Final = 8_192
ANSWER_WITHIN: Final = 2.0
"""Seconds allowed for a request and its answer."""
MOST_AT_ONCE: Final = 64
"""The maximum number of open connections. One more replaces the oldest one of the client that has most."""
ACCEPTED_AT_ONCE: Final = 8
"""The number of connections to accept before the open ones are read. It is small, so that even in a
flood of connections, each is read before others replace it."""
UNACCEPTED: Final = 128
"""The maximum number of connections waiting to be accepted."""

STARTED_WITHIN: Final = 5.0
ENDED_WITHIN: Final = 5.0
STEPS_TO_ADMIT: Final = 3
"""Turns of asyncio's event loop between accepting a connection and admitting it."""

Ask = Callable[[], HealthCheck]


def listener(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ConfigurationError if that fails. Port 0 means any free port."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"--health-port: nothing can listen on {host!r}, port {port}: {error}") from error


class HealthServer:
    """The HTTP server for health probes. It answers GET and HEAD for the paths in
    `asks`, with 200 if the check succeeds and 503 if not."""

    def __init__(self, listener: socket.socket, asks: Mapping[str, Ask]) -> None:
        self._listener = listener
        self._asks = asks
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}  # ordered by age, the oldest first
        self._end: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        is_serving = threading.Event()
        self._thread = start_thread(lambda: self._keep(is_serving), "taskflow-health")
        is_serving.wait(STARTED_WITHIN)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the thread has ended by itself
            self._end()
        if self._thread is not None:
            self._thread.join(ENDED_WITHIN)
        self._listener.close()

    def _keep(self, is_serving: threading.Event) -> None:
        try:
            asyncio.run(self._serve(is_serving))
        except Exception as error:  # for example, a job has closed its descriptors
            log.error("health probes are no longer answered: %s: %s", type(error).__name__, error)

    async def _serve(self, is_serving: threading.Event) -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(ending.set)
        server = await asyncio.start_server(self._admit, sock=self._listener, limit=LARGEST_REQUEST, backlog=ACCEPTED_AT_ONCE)
        self._listener.listen(UNACCEPTED)  # asyncio uses one number for both
        is_serving.set()
        await ending.wait()
        loop.remove_reader(self._listener)  # closing the server fails for connections that are accepted but not admitted
        for _ in range(STEPS_TO_ADMIT):
            await asyncio.sleep(0)
        server.close()
        for writer in list(self._open):
            writer.transport.abort()

    def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_AT_ONCE:  # a client with many connections must not keep the others out
            clients = [(each.get_extra_info("peername") or (None,))[0] for each in self._open]
            [(busiest, _)] = Counter(clients).most_common(1)
            oldest = next(each for each, client in zip(self._open, clients, strict=True) if client == busiest)
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = hearing = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        hearing.add_done_callback(lambda _: self._open.pop(writer, None))

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                writer.write(await self._answer_to(reader))
                writer.write_eof()
                while await reader.read(LARGEST_REQUEST):  # closing with unread input would discard the answer
                    pass
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.transport.abort()  # has no effect if it is closed

    async def _answer_to(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match head.partition(b"\r\n")[0].decode("latin-1").split(" "):
            case ["GET" | "HEAD" as method, target, version] if version.startswith("HTTP/1."):
                return self._found(target, with_body=method == "GET")
            case [_, _, version] if version.startswith("HTTP/1."):
                return _answer(HTTPStatus.METHOD_NOT_ALLOWED)
            case _:
                return _answer(HTTPStatus.BAD_REQUEST)

    def _found(self, target: str, *, with_body: bool) -> bytes:
        try:
            ask = self._asks.get(urlsplit(target).path)
        except ValueError:
            return _answer(HTTPStatus.BAD_REQUEST, with_body=with_body)
        if ask is None:
            return _answer(HTTPStatus.NOT_FOUND, {"why": f"there are {' and '.join(self._asks)}"}, with_body=with_body)
        found = ask()
        status = HTTPStatus.OK if found.is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return _answer(status, {"ok": found.is_well, "why": found.why, **found.facts}, with_body=with_body)


def _answer(status: HTTPStatus, shown: Mapping[str, object] | None = None, *, with_body: bool = True) -> bytes:
    body = json.dumps(shown or {"why": status.phrase}).encode() + b"\n"
    allow = "Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{allow}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
