"""The application: the registry, the settings and the brokers in one object. All global state of taskflow is here."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from taskflow.app.call import Call
from taskflow.app.default_app import set_default_app
from taskflow.app.enqueue_batches import Batch, Batches, Sent, async_batches
from taskflow.app.handle import JobHandle
from taskflow.app.loop_client import LoopClient
from taskflow.app.middleware import EnqueueCall, Middleware, enqueue_chain
from taskflow.app.registry import Registry
from taskflow.app.settings import DEFAULT_BROKER, Lifespan, Settings, check_configured, layered
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.broker.url import connect
from taskflow.model.codec import Limits
from taskflow.model.errors import ConfigurationError, EnqueueFailed, KeyConflict, TaskflowError
from taskflow.model.ids import IdFactory
from taskflow.model.job_schema import check_headers

R = TypeVar("R")

log: Final = logging.getLogger("taskflow")


class App:
    """The state of one process, with one client per running event loop. A forked child starts without clients."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.new_id: Callable[[], bytes] = IdFactory()
        self.limits = Limits()
        self._configured: dict[str, Any] = {}
        self._flags: dict[str, Any] = {}
        self._settings: Settings | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._brokers: dict[str, Broker] = {}
        self._clients: dict[asyncio.AbstractEventLoop, LoopClient] = {}
        self._given_broker: Broker | None = None
        self._of_parents: list[object] = []
        self._has_told_default = False
        self._why_out_of_reach: str | None = None
        self.is_in_child = False
        self._importing: str | None = None

    # --- settings ----------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The current settings. They are read at first use, not at import, because jobs are declared before the application is
        configured."""
        return self._settings or self.read_settings()

    def read_settings(self) -> Settings:
        """Read the settings at first use and after each change. Jobs that are already declared get the new limits."""
        settings = self._settings
        if settings is None:
            self._settings = settings = layered({**self._configured, **self._flags})
            self.limits = Limits(size=settings.max_payload)
            for job in self.registry:
                job.codec.limits = self.limits
        return settings

    def configure(self, **given: Any) -> None:
        check_configured(given)
        self._configured.update({name: value for name, value in given.items() if value is not None})
        self._settings = None
        self._clients.clear()

    def flag(self, **given: Any) -> None:
        """Set settings from a command's flags, which override all others."""
        self._flags.update({name: value for name, value in given.items() if value is not None})
        self._settings = None
        self._clients.clear()

    @contextmanager
    def using(self, broker: Broker) -> Iterator[None]:
        """Send everything to `broker` inside the block, whatever the settings say. Settings changed inside the block are restored after
        it."""
        before = (self._given_broker, self._configured.copy(), self._flags.copy())
        self._given_broker = broker
        self._clients.clear()
        try:
            yield
        finally:
            self._given_broker, self._configured, self._flags = before
            self._settings = None
            self._clients.clear()

    # --- connections -------------------------------------------------------------------------------

    def client(self) -> LoopClient:
        """Return the client of the running event loop. Raises RuntimeError if there is none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("no event loop is running here: use .delay_sync(), enqueue_sync() or run_sync()") from None
        if self._pid != os.getpid():
            self._forget_parents()
        found = self._clients.get(loop)
        return found if found is not None else self._new_client(loop)

    def broker_url(self) -> str:
        configured = self.settings.broker
        return DEFAULT_BROKER if configured is None else configured

    def broker(self) -> Broker:
        """Return the configured broker. A process has one broker per URL."""
        if self._given_broker is not None:
            return self._given_broker
        if self._why_out_of_reach is not None:
            raise ConfigurationError(self._why_out_of_reach)
        if self._pid != os.getpid():
            self._forget_parents()
        url = self.broker_url()
        with self._lock:
            if url not in self._brokers:
                self._brokers[url] = connect(url)
                self._tell_default()
            return self._brokers[url]

    @property
    def is_reachable(self) -> bool:
        """Return True if another process can reach the same jobs through the broker's URL."""
        return self._given_broker is None and not self.broker_url().startswith("memory:")

    def enter_child(self, settings: dict[str, Any], *, is_reachable: bool) -> None:
        """Apply the worker's settings in a child process, and make `broker()` raise if only the worker's process can reach the broker."""
        self.is_in_child = True
        self.flag(**settings)
        if not is_reachable:
            self._why_out_of_reach = (
                "jobs of the memory broker can be sent only from the worker's process, and this is its child process "
                '(runs_in="process"): return the data and send the job elsewhere, or use another broker'
            )

    async def close(self) -> None:
        """Close all brokers. They connect again when next used."""
        self._clients.clear()
        brokers, self._brokers = list(self._brokers.values()), {}
        for broker in brokers:
            await broker.close()

    def _new_client(self, loop: asyncio.AbstractEventLoop) -> LoopClient:
        for other in list(self._clients):  # a copy, because other threads add clients for their own loops
            if other.is_closed():
                self._clients.pop(other, None)
        client = LoopClient(self.broker(), patience=self.settings.enqueue_timeout)
        self._clients[loop] = client
        return client

    def _tell_default(self) -> None:
        """Warn once that the default file is used. A web process and a worker in two folders would silently use two files."""
        if self.settings.broker is None and not self._has_told_default:
            self._has_told_default = True
            path = Path(DEFAULT_BROKER.removeprefix("sqlite:///")).absolute()
            log.warning("no broker is configured: using the SQLite file %s; set TASKFLOW_BROKER, or configure(broker=...)", path)

    def _forget_parents(self) -> None:
        """Set the parent's clients and brokers aside after a fork. Their destructors could harm connections that the parent still uses."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._of_parents += [self._clients, self._brokers]
        self._clients = {}
        self._brokers = {url: broker for url, broker in self._brokers.items() if url.startswith("memory:")}

    # --- sending -----------------------------------------------------------------------------------

    @contextmanager
    def importing(self, module: str) -> Iterator[None]:
        """Warn if a job is sent while a worker imports `module`. Only the first such job is reported."""
        self._importing = module
        try:
            yield
        finally:
            self._importing = None

    def _warn_of_sending(self, call: Call[Any]) -> None:
        module, self._importing = self._importing, None
        log.warning(
            "%s sends %s when it is imported, so every worker that imports the module sends the job again; "
            'send it from a function, or below `if __name__ == "__main__":`',
            module,
            call.job.name,
        )

    async def send(self, call: Call[R]) -> JobHandle[R]:
        """Send one call. Calls sent at the same time share a round trip."""
        if self._importing is not None:
            self._warn_of_sending(call)
        send = self.client().send
        has_middleware = self.settings.middleware and self._has_enqueue_middleware()
        answer = await (self._through_middleware(call, send) if has_middleware else send(call.envelope))
        if call.raises_on_conflict and _is_conflict(call, answer):
            raise _conflict(call, self._handle(call, answer).id)
        return self._handle(call, answer)

    async def enqueue(self, calls: Iterable[Call[R]] | AsyncIterable[Call[R]]) -> list[JobHandle[R]]:
        sent = Sent[R]()
        if isinstance(calls, AsyncIterable):
            async with aclosing(async_batches(calls)) as batches:
                async for batch in batches:
                    await self.send_batch(batch, sent)
        else:
            in_step = Batches(calls)
            for batch in in_step:
                await self._send_before(in_step, batch, sent)
        return sent.handles

    async def _send_before(self, rest: Batches[R], batch: Batch[R], sent: Sent[R]) -> None:
        """Send the batch, and read the next one meanwhile. Making a batch in Python takes about as long as adding one to a store."""
        if rest.has_ended:
            return await self.send_batch(batch, sent)
        sending = asyncio.create_task(self.send_batch(batch, sent))
        try:
            await asyncio.sleep(0)  # lets the task start
            rest.gather_ahead()
            return await sending
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def send_batch(self, batch: Batch[R], sent: Sent[R]) -> None:
        """Send the batch and add its handles to `sent`. Raises EnqueueFailed, which carries all handles so far, if some calls were not
        sent."""
        if self._importing is not None and batch.calls:
            self._warn_of_sending(batch.calls[0])
        answers = await self._answers(batch.calls)
        errors = [answer for answer in (*answers, batch.error) if isinstance(answer, BaseException)]
        for call, answer in zip(batch.calls, answers, strict=True):
            if not isinstance(answer, BaseException):
                sent.handles.append(self._handle(call, answer))
                if _is_conflict(call, answer):
                    sent.conflicts.append(sent.handles[-1])
        if errors:
            raise _failed(sent, f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]
        if sent.conflicts:
            raise _failed(sent, f"{len(sent.conflicts)} call(s) found a live job with their key, for example {sent.conflicts[0]!r}")

    async def _answers(self, calls: list[Call[Any]]) -> list[Added | Refused | BaseException]:
        """Return an answer or an error for each call. A failing call does not affect the others, unless the broker itself fails."""
        client = self.client()
        if not calls:
            return []
        if self._has_enqueue_middleware():
            return await asyncio.gather(*(self._through_middleware(call, client.send) for call in calls), return_exceptions=True)
        try:
            return [*await client.enqueue([call.envelope for call in calls])]
        except TaskflowError as error:
            return [error] * len(calls)

    def _has_enqueue_middleware(self) -> bool:
        layers = self.settings.middleware
        return bool(layers) and any(type(layer).enqueue is not Middleware.enqueue for layer in layers)

    async def _through_middleware(self, call: Call[Any], send: Any) -> Added | Refused:
        answers: list[Added | Refused] = []

        async def innermost(enqueue_call: EnqueueCall) -> None:
            enqueue_call.headers = check_headers(enqueue_call.headers)
            answers.append(await send(enqueue_call.to_envelope()))

        await enqueue_chain(self.settings.middleware, innermost)(EnqueueCall(call.envelope))
        if not answers:
            raise TaskflowError(f"{call!r} was not sent: a middleware's enqueue() did not await call_next(call)")
        return answers[-1]

    def _handle(self, call: Call[R], answer: Added | Refused) -> JobHandle[R]:
        if isinstance(answer, Added) or answer.standing == answer.id:
            return JobHandle(self, answer.id, call.job)
        return JobHandle(self, answer.standing, call.job, is_new=False)


def _is_conflict(call: Call[Any], answer: Added | Refused) -> bool:
    return call.raises_on_conflict and isinstance(answer, Refused) and answer.because == "key"


def _conflict(call: Call[Any], standing: str) -> KeyConflict:
    return KeyConflict(
        f"{call!r} was not sent: the live job {standing} has its key {call.key!r}; "
        'on_conflict="keep" returns the handle of that job, "replace" cancels it',
        job_id=standing,
    )


def _failed(sent: Sent[Any], why: str) -> EnqueueFailed:
    message = f"not all calls were sent: {why}; {len(sent.handles)} call(s) were sent, and .handles has their handles in order"
    return EnqueueFailed(message, handles=sent.handles, conflicts=sent.conflicts)


def configure(
    *,
    broker: str | None = None,
    enqueue_timeout: float | None = None,
    max_payload: int | None = None,
    middleware: Sequence[Middleware] | None = None,
    lifespan: Lifespan | None = None,
) -> None:
    """Configure the application. Only command-line flags override these settings. Arguments left out keep their values. See `Settings`."""
    app.configure(broker=broker, enqueue_timeout=enqueue_timeout, max_payload=max_payload, middleware=middleware, lifespan=lifespan)


async def enqueue(calls: Iterable[Call[R]] | AsyncIterable[Call[R]]) -> list[JobHandle[R]]:
    """Send many calls: ``enqueue(add.bind(n, n) for n in range(10_000))``.

    The calls are streamed in batches of at most 1,000 calls or 1 MiB. Each batch is added as a whole or not at all.
    Returns the handles in the order of the calls. Raises EnqueueFailed, with the handles of the calls sent so far, if some were not sent or
    if the iterable raises. Calls that it yielded before it raised are sent.
    """
    return await app.enqueue(calls)


app: Final = App()
set_default_app(app)
