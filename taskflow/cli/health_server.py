"""`--health-port`: serves /live, /ready, /metrics and /scale over HTTP, from a thread that answers even while the event loop is blocked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from taskflow.model.clock import start_thread
from taskflow.model.errors import ConfigurationError
from taskflow.worker.health import HealthCheck

log: Final = logging.getLogger("taskflow.worker")

MAX_REQUEST: Final = 8_192
ANSWER_TIMEOUT: Final = 2.0  # seconds for a request and its answer
MAX_OPEN: Final = 64  # maximum open connections; a further one replaces the oldest
# The number of connections to accept before the open ones are read. It's low, so that each is read before it's replaced, even in a flood.
MAX_ACCEPTED_AT_ONCE: Final = 8
MAX_UNACCEPTED: Final = 128
START_TIMEOUT: Final = 5.0
STOP_TIMEOUT: Final = 5.0

Page = tuple[str, bytes]
"""A content type and a body."""


def listener(host: str, port: int, option: str = "--health-port") -> socket.socket:
    """Open a listening socket. Port 0 means any free port. On failure, raises a ConfigurationError that names the option."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{option}: cannot listen on {host!r}, port {port}: {error}") from error


class HealthServer:
    """The HTTP server for health probes. `asks` maps paths to checks: the status is 200 if the check succeeds, otherwise 503. `pages` maps
    paths to functions that return a content type and a body, or None if the page does not exist."""

    def __init__(
        self, listener: socket.socket, asks: Mapping[str, Callable[[], HealthCheck]], pages: Mapping[str, Callable[[], Page | None]]
    ) -> None:
        self._listener = listener
        self._asks = asks
        self._pages = pages
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}  # ordered by age, the oldest first
        self._end: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        is_serving = threading.Event()
        self._thread = start_thread(lambda: self._run(is_serving), "taskflow-health")
        is_serving.wait(START_TIMEOUT)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the thread has ended by itself
            self._end()
        self._thread.join(STOP_TIMEOUT)
        self._listener.close()

    def _run(self, is_serving: threading.Event) -> None:
        try:
            asyncio.run(self._serve(is_serving))
        except Exception as error:  # for example, a job has closed its descriptors
            log.error("health probes are no longer answered: %s: %s", type(error).__name__, error)

    async def _serve(self, is_serving: threading.Event) -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(ending.set)
        server = await asyncio.start_server(self._admit, sock=self._listener, limit=MAX_REQUEST, backlog=MAX_ACCEPTED_AT_ONCE)
        self._listener.listen(MAX_UNACCEPTED)  # asyncio uses `backlog` for both limits
        is_serving.set()
        await ending.wait()
        loop.remove_reader(self._listener)
        for _ in range(3):  # asyncio needs this many iterations to pass on an accepted connection
            await asyncio.sleep(0)
        server.close()
        for writer in list(self._open):
            writer.transport.abort()

    def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = answering = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        answering.add_done_callback(lambda _: self._open.pop(writer, None))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError), contextlib.closing(writer.transport):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                writer.write(await self._answer_to(reader))
                writer.write_eof()
                while await reader.read(MAX_REQUEST):  # closing with unread input would discard the answer
                    pass

    async def _answer_to(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match head.partition(b"\r\n")[0].decode("latin-1").split(" "):
            case [method, target, version] if version.startswith("HTTP/1."):
                is_known = method in ("GET", "HEAD")
                return self._check(target, with_body=method == "GET") if is_known else _response(HTTPStatus.METHOD_NOT_ALLOWED)
        return _response(HTTPStatus.BAD_REQUEST)

    def _check(self, target: str, *, with_body: bool) -> bytes:
        try:
            path = urlsplit(target).path
        except ValueError:
            return _response(HTTPStatus.BAD_REQUEST, with_body=with_body)
        ask = self._asks.get(path)
        if ask is None:
            try:
                page = self._pages[path]() if path in self._pages else None
            except Exception as error:  # for example, one of the application's collectors has raised it
                raised = {"why": f"{type(error).__name__}: {error}"}
                return _response(HTTPStatus.INTERNAL_SERVER_ERROR, raised, with_body=with_body)
            if page is not None:
                return _response(HTTPStatus.OK, page, with_body=with_body)
            why = f"no such page: use {' or '.join(self._asks)}"
            if path in self._pages:
                why += ", or configure(telemetry=[Prometheus()]) in the worker's code to get this page"
            return _response(HTTPStatus.NOT_FOUND, {"why": why}, with_body=with_body)
        found = ask()
        shown = {"ok": found.is_well, "why": found.why, **found.facts}
        return _response(HTTPStatus.OK if found.is_well else HTTPStatus.SERVICE_UNAVAILABLE, shown, with_body=with_body)


def _response(status: HTTPStatus, shown: Mapping[str, object] | Page | None = None, *, with_body: bool = True) -> bytes:
    kind, body = shown if isinstance(shown, tuple) else ("application/json", json.dumps(shown or {"why": status.phrase}).encode() + b"\n")
    allow = "Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{allow}Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
