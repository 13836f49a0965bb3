"""All global state of taskflow, in one object: the registry, the settings, the connections."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from taskflow.app.call import Call
from taskflow.app.coalesce import MAX_BYTES, MAX_ITEMS
from taskflow.app.connection import Connection
from taskflow.app.current import set_default_app
from taskflow.app.handle import JobHandle
from taskflow.app.middleware import EnqueueCall, Middleware, enqueue_chain
from taskflow.app.registry import Registry
from taskflow.app.settings import DEFAULT_BROKER, Lifespan, Settings, check_configured, layered
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.broker.url import connect
from taskflow.model.envelope import check_headers
from taskflow.model.errors import EnqueueFailed, KeyConflict, TaskflowError
from taskflow.model.ids import IdFactory, id_text

R = TypeVar("R")

log: Final = logging.getLogger("taskflow")


class App:
    """One set of connections per running event loop, afresh in a forked child."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.new_id: Callable[[], bytes] = IdFactory()
        self._configured: dict[str, Any] = {}
        self._flags: dict[str, Any] = {}
        self._settings: Settings | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._brokers: dict[str, Broker] = {}
        self._connections: dict[asyncio.AbstractEventLoop, Connection] = {}
        self._given_broker: Broker | None = None

    # --- settings ----------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = layered({**self._configured, **self._flags})
        return self._settings

    def configure(self, **given: Any) -> None:
        check_configured(given)
        self._configured.update({name: value for name, value in given.items() if value is not None})
        self._settings = None
        self._connections.clear()

    def flag(self, **given: Any) -> None:
        """Settings from a command's flags: they come before all others."""
        self._flags.update({name: value for name, value in given.items() if value is not None})
        self._settings = None
        self._connections.clear()

    @contextmanager
    def using(self, broker: Broker) -> Iterator[None]:
        """Everything goes to this broker for a while, whatever the settings say; what is configured meanwhile is undone after."""
        before = (self._given_broker, self._configured.copy(), self._flags.copy())
        self._given_broker = broker
        self._connections.clear()
        try:
            yield
        finally:
            self._given_broker, self._configured, self._flags = before
            self._settings = None
            self._connections.clear()

    # --- connections -------------------------------------------------------------------------------

    def connection(self) -> Connection:
        """The running loop's; RuntimeError outside of one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("there is no running event loop here: use .delay_sync(), enqueue_sync() or run_sync()") from None
        if self._pid != os.getpid():
            self._forget_parents()
        found = self._connections.get(loop)
        return found if found is not None else self._connect(loop)

    def broker_url(self) -> str:
        return self.settings.broker or DEFAULT_BROKER

    def broker(self) -> Broker:
        """The broker of the settings; a URL has one in a process."""
        if self._given_broker is not None:
            return self._given_broker
        url = self.broker_url()
        with self._lock:
            if url not in self._brokers:
                self._brokers[url] = connect(url)
                if self.settings.broker is None:
                    log.warning("no broker is configured: using the SQLite file %s", Path("taskflow.db").absolute())
            return self._brokers[url]

    async def close(self) -> None:
        """Let go of every broker; the next use connects again."""
        self._connections.clear()
        brokers, self._brokers = list(self._brokers.values()), {}
        for broker in brokers:
            await broker.close()

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        for other in [other for other in self._connections if other.is_closed()]:
            del self._connections[other]
        connection = Connection(self.broker(), enqueue_timeout=self.settings.enqueue_timeout)
        self._connections[loop] = connection
        return connection

    def _forget_parents(self) -> None:
        """After a fork: the parent's connections are the parent's."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connections = {}
        self._brokers = {url: broker for url, broker in self._brokers.items() if url.startswith("memory:")}

    # --- sending -----------------------------------------------------------------------------------

    async def send(self, call: Call[R]) -> JobHandle[R]:
        """One call, sharing its round trip with others under way."""
        connection = self.connection()
        answer = await self._through_middleware(call, connection.send)
        if isinstance(answer, Refused) and answer.because == "key" and call.raises_on_conflict:
            raise _conflict(call, answer)
        return self._handle(call, answer)

    async def enqueue(self, calls: Iterable[Call[R]] | AsyncIterable[Call[R]]) -> list[JobHandle[R]]:
        handles: list[JobHandle[R]] = []
        conflicts: list[JobHandle[R]] = []
        async for batch in _batches(calls):
            try:
                answers = await self._send_batch(batch)
            except TaskflowError as error:
                raise EnqueueFailed(f"{len(handles)} job(s) were sent, then: {error}", handles=handles) from error
            handles += [self._handle(call, answer) for call, answer in zip(batch, answers, strict=True)]
            conflicts += [
                self._handle(call, answer)
                for call, answer in zip(batch, answers, strict=True)
                if call.raises_on_conflict and isinstance(answer, Refused) and answer.because == "key"
            ]
            if conflicts:
                raise EnqueueFailed(
                    f"{len(conflicts)} call(s) found a live job with their key, for example {conflicts[0]!r}",
                    handles=handles,
                    conflicts=conflicts,
                )
        return handles

    async def _send_batch(self, batch: list[Call[Any]]) -> list[Added | Refused]:
        connection = self.connection()
        if self._has_enqueue_middleware():
            return [await self._through_middleware(call, connection.send) for call in batch]
        return await connection.enqueue([call.envelope for call in batch])

    def _has_enqueue_middleware(self) -> bool:
        return any(type(layer).enqueue is not Middleware.enqueue for layer in self.settings.middleware)

    async def _through_middleware(self, call: Call[Any], send: Any) -> Added | Refused:
        if not self._has_enqueue_middleware():
            answer: Added | Refused = await send(call.envelope)
            return answer
        answers: list[Added | Refused] = []

        async def innermost(enqueue_call: EnqueueCall) -> None:
            check_headers(enqueue_call.headers)
            answers.append(await send(enqueue_call.to_envelope()))

        await enqueue_chain(self.settings.middleware, innermost)(EnqueueCall(call.envelope))
        if not answers:
            raise TaskflowError(f"{call!r} was not sent: a middleware's enqueue() did not await call_next(call)")
        return answers[-1]

    def _handle(self, call: Call[R], answer: Added | Refused) -> JobHandle[R]:
        if isinstance(answer, Added) or answer.standing == answer.id:
            return JobHandle(self, answer.id, call.job)
        return JobHandle(self, answer.standing, call.job, is_new=False)


async def _batches(calls: Iterable[Call[R]] | AsyncIterable[Call[R]]) -> AsyncIterator[list[Call[R]]]:
    """Lists of at most 1,000 calls or 1 MiB, taken from the iterable as they are sent: a generator may be endless."""
    if isinstance(calls, AsyncIterable):
        batch: list[Call[R]] = []
        async for call in calls:
            batch.append(call)
            if _is_full(batch):
                yield batch
                batch = []
        if batch:
            yield batch
        return
    source = iter(calls)
    while batch := _take(source):
        yield batch


def _take(source: Iterator[Call[R]]) -> list[Call[R]]:
    batch: list[Call[R]] = []
    size = 0
    for call in islice(source, MAX_ITEMS):
        batch.append(call)
        size += len(call.envelope.payload)
        if size >= MAX_BYTES:
            break
    return batch


def _is_full(batch: Sequence[Call[Any]]) -> bool:
    return len(batch) >= MAX_ITEMS or sum(len(call.envelope.payload) for call in batch) >= MAX_BYTES


def _conflict(call: Call[Any], answer: Refused) -> KeyConflict:
    standing = id_text(answer.standing)
    return KeyConflict(f"{call!r} was not sent: the live job {standing} has its key", job_id=standing)


def configure(
    *,
    broker: str | None = None,
    enqueue_timeout: float | None = None,
    max_payload: int | None = None,
    middleware: Sequence[Middleware] | None = None,
    lifespan: Lifespan | None = None,
) -> None:
    """Set what the application wants; only a command's flag comes before it. What is left out stays as it is. See `Settings`."""
    app.configure(broker=broker, enqueue_timeout=enqueue_timeout, max_payload=max_payload, middleware=middleware, lifespan=lifespan)


async def enqueue(calls: Iterable[Call[R]] | AsyncIterable[Call[R]]) -> list[JobHandle[R]]:
    """Send many calls: ``enqueue(add.bind(n, n) for n in range(10_000))``.

    They are streamed in batches of at most 1,000 calls or 1 MiB; each batch is added as a whole or not at all.
    The handles come in the calls' order. Raises EnqueueFailed, which carries the handles of what was sent before.
    """
    return await app.enqueue(calls)


app: Final = App()
set_default_app(app)
