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
"""The maximum number of open connections. One more replaces an old one: see `HealthServer._close_oldest_of_busiest`."""
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
Response = tuple[HTTPStatus, Mapping[str, object]]


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
        self._end: Callable[[], None] = lambda: None
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

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # the thread has ended by itself
                loop.call_soon_threadsafe(ending.set)

        self._end = end
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
        if len(self._open) >= MOST_AT_ONCE:
            self._close_oldest_of_busiest()
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

    def _close_oldest_of_busiest(self) -> None:
        """Close the oldest connection of the client that has the most, so that a
        client with many connections cannot keep the others out."""
        clients = [(writer.get_extra_info("peername") or (None,))[0] for writer in self._open]
        [(busiest, _)] = Counter(clients).most_common(1)
        oldest = next(writer for writer, client in zip(self._open, clients, strict=True) if client == busiest)
        del self._open[oldest]
        oldest.transport.abort()

    async def _answer_to(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _written(_refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        parts = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _written(_refused(HTTPStatus.BAD_REQUEST))
        method, target, _ = parts
        if method not in ("GET", "HEAD"):
            return _written(_refused(HTTPStatus.METHOD_NOT_ALLOWED))
        return _written(self._found(target), with_body=method == "GET")

    def _found(self, target: str) -> Response:
        try:
            ask = self._asks.get(urlsplit(target).path)
        except ValueError:
            return _refused(HTTPStatus.BAD_REQUEST)
        if ask is None:
            return HTTPStatus.NOT_FOUND, {"why": f"there are {' and '.join(self._asks)}"}
        found = ask()
        status = HTTPStatus.OK if found.is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {"ok": found.is_well, "why": found.why, **found.facts}


def _refused(status: HTTPStatus) -> Response:
    return status, {"why": status.phrase}


def _written(response: Response, *, with_body: bool = True) -> bytes:
    status, shown = response
    body = json.dumps(shown).encode() + b"\n"
    allow = "Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{allow}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
