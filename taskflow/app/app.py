"""The `App` object, which holds the registry, the settings and the brokers, and `configure`, which sets up the default one."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from taskflow.app.job_type import Registry
from taskflow.app.loop_client import LoopClient
from taskflow.app.middleware import Middleware, Telemetry
from taskflow.app.portal import INTERRUPTED
from taskflow.app.settings import DEFAULT_BROKER, ChildLifespanFactory, Defaults, LifespanFactory, Settings, checked, layered
from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.broker.url import connect, load
from taskflow.model.codec import Limits
from taskflow.model.errors import ConfigurationError
from taskflow.model.ids import IdFactory

if TYPE_CHECKING:  # loaded only by applications that use them
    from taskflow.app.around import Dependency
    from taskflow.app.events import Events, Subscriber
    from taskflow.app.options import DefaultOptions

log: Final = logging.getLogger("taskflow")


RunInline = Callable[[Sequence[Added | Refused | BaseException]], Awaitable[None]]


class App:
    """Holds the registry, the settings and the brokers, and one client per running event loop. A forked child starts without clients, and
    keeps no brokers except memory brokers.

    `is_in_child`          True in a worker's child process (``runs_in="process"``)
    `importing_module`     the module that a worker is importing, until it sends a job; otherwise None
    `ignores_connections`  True in in-memory tests: jobs sent in a transaction are added at once
    `overrides`            in tests: pairs of a dependency's function and its replacement; the last one wins
    `run_inline`           in tests that run jobs as they're sent: a function that takes the store's answers and runs the jobs that were
                           added
    """

    def __init__(self) -> None:
        self.registry = Registry()
        self.new_id: Callable[[], bytes] = IdFactory()
        self.limits = Limits()
        self._integrated: dict[str, Any] = {}
        self._configured: dict[str, Any] = {}
        self._flags: dict[str, Any] = {}
        self._settings: Settings | None = None
        self._events: Events | None = None
        self._lock = threading.RLock()
        self._is_connecting = False
        self._pid = os.getpid()
        self._brokers: dict[str, Broker] = {}
        self._clients: dict[asyncio.AbstractEventLoop, LoopClient] = {}
        self._given_broker: Broker | None = None
        self._of_parents: list[object] = []
        self._has_told_default = False
        self._why_out_of_reach: str | None = None
        self.is_in_child = False
        self.ignores_connections = False
        self.run_inline: RunInline | None = None
        self.importing_module: str | None = None
        self.overrides: list[tuple[Callable[..., Any], Dependency]] = []

    # --- settings ----------------------------------------------------------------------------------

    def read_settings(self) -> Settings:
        """Return the current settings. They are read on first use and after each change; declared jobs then get the new size limits."""
        settings = self._settings
        if settings is None:
            integrated = {name: value for name, value in self._integrated.items() if value is not None}
            outermost = integrated.pop("middleware", ())
            settings = layered({**integrated, **self._configured, **self._flags})
            self._settings = settings = replace(settings, middleware=(*outermost, *settings.middleware)) if outermost else settings
            self.limits = Limits(size=settings.max_payload)
            for job in self.registry:
                job.codec.limits = self.limits
        return settings

    settings = property(read_settings)

    def events(self) -> Events:
        """Return the object that passes senders' events to the subscribers."""
        if self._events is None:
            from taskflow.app.events import Events

            self._events = Events(*self.settings.subscribers)
        return self._events

    def configure(self, **given: Any) -> None:
        self._configured.update(checked(given))
        self._forget_settings(given.get("broker"))

    def integrate(self, **given: Any) -> None:
        """Apply a framework's settings, which `configure` overrides. The framework's middleware surrounds the application's."""
        checked(given)
        self._integrated.update(given)
        self._forget_settings(given.get("broker"))

    def flag(self, **given: Any) -> None:
        """Apply settings from a command's flags, which override all other sources. A flag of None changes nothing."""
        self._flags.update({name: value for name, value in given.items() if value is not None})
        self._forget_settings()

    def _forget_settings(self, broker: str | None = None) -> None:
        if broker is not None:
            load(broker)
        self._settings = self._events = None
        self._clients.clear()

    @contextmanager
    def using(self, broker: Broker) -> Iterator[None]:
        """Use `broker` inside the block, regardless of the settings. What `configure` and `flag` change there is undone afterwards."""
        before = (self._given_broker, self._configured.copy(), self._flags.copy())
        self._given_broker = broker
        self._clients.clear()
        try:
            yield
        finally:
            self._given_broker, self._configured, self._flags = before
            self._forget_settings()

    # --- connections -------------------------------------------------------------------------------

    def client(self) -> LoopClient:
        """Return the client of the running event loop. Raises RuntimeError if no loop is running."""
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
        """Return the current broker, created once per URL. Raises ConfigurationError in a child process that can't reach the broker."""
        if self._given_broker is not None:
            return self._given_broker
        if self._why_out_of_reach is not None:
            raise ConfigurationError(self._why_out_of_reach)
        if self._pid != os.getpid():
            self._forget_parents()
        url = self.broker_url()
        with self._lock:
            if url not in self._brokers:
                if self._is_connecting:  # a signal handler or a `__del__` interrupted this thread while it was connecting
                    raise RuntimeError(INTERRUPTED)
                self._is_connecting = True
                try:
                    self._brokers[url] = connect(url)
                finally:
                    self._is_connecting = False
                if self.settings.broker is None and not self._has_told_default:
                    self._has_told_default = True  # warn: a web process and a worker in another folder would use different files
                    path = Path(DEFAULT_BROKER.removeprefix("sqlite:///")).absolute()
                    log.warning("no broker is configured: using the SQLite file %s; set TASKFLOW_BROKER, or configure(broker=...)", path)
            return self._brokers[url]

    @property
    def is_reachable(self) -> bool:
        """Return True if another process can reach the same jobs through the broker's URL."""
        return self._given_broker is None and not self.broker_url().startswith("memory:")

    def enter_child(self, settings: dict[str, Any], *, is_reachable: bool) -> None:
        """Apply the worker's settings in a child process, and make `broker()` raise if only the worker's process can reach the broker."""
        self.is_in_child = True
        self._configured["defaults"] = Defaults(settings["defaults"])
        self.flag(**{name: value for name, value in settings.items() if name != "defaults"})
        if not is_reachable:
            self._why_out_of_reach = (
                "jobs of the memory broker can be sent only from the worker's process, and this is its child process "
                '(runs_in="process"): return the data and send the job elsewhere, or use another broker'
            )

    async def close(self) -> None:
        """Close all brokers that were created from URLs. The next use creates new ones."""
        self._clients.clear()
        brokers, self._brokers = list(self._brokers.values()), {}
        for broker in brokers:
            await broker.close()

    def _new_client(self, loop: asyncio.AbstractEventLoop) -> LoopClient:
        for other in list(self._clients):  # a copy, because other threads add clients for their own loops
            if other.is_closed():
                self._clients.pop(other, None)
        client = LoopClient(self.broker(), timeout=self.settings.enqueue_timeout)
        self._clients[loop] = client
        return client

    def _forget_parents(self) -> None:
        """After a fork, stop using the parent's clients, and its brokers except memory brokers. Keep them alive, because their destructors
        could break the parent's connections."""
        self._pid = os.getpid()
        self._lock, self._is_connecting = threading.RLock(), False
        self._of_parents += [self._clients, self._brokers]
        self._clients = {}
        self._brokers = {url: broker for url, broker in self._brokers.items() if url.startswith("memory:")}

    # --- imports by a worker -----------------------------------------------------------------------

    @contextmanager
    def importing(self, module: str) -> Iterator[None]:
        """Warn about the first job that is sent while a worker imports `module` inside the `with` block."""
        self.importing_module = module
        try:
            yield
        finally:
            self.importing_module = None

    def warn_of_sending(self, job: str) -> None:
        module, self.importing_module = self.importing_module, None
        log.warning(
            "%s sends %s when it is imported, so every worker that imports the module sends the job again; "
            'send it from a function, or below `if __name__ == "__main__":`',
            module,
            job,
        )


_default_app = App()


def default_app() -> App:
    """Return the application that taskflow's module-level functions use."""
    return _default_app


def configure(
    *,
    broker: str | None = None,
    enqueue_timeout: float | None = None,
    max_payload: int | None = None,
    middleware: Sequence[Middleware] | None = None,
    lifespan: LifespanFactory | None = None,
    subscribers: Sequence[Subscriber] | None = None,
    telemetry: Sequence[Telemetry] | None = None,
    child_initializer: Callable[[], object] | None = None,
    child_lifespan: ChildLifespanFactory | None = None,
    defaults: DefaultOptions | None = None,
) -> None:
    """Configure the application. Settings left out keep their values. Only command-line flags override these settings.

    `broker`             the broker's URL (default "sqlite:///taskflow.db", a file in the current folder)
    `enqueue_timeout`    seconds after which a call raises BrokerUnavailable if the store does not answer (default 5)
    `max_payload`        the maximum size of a call's arguments, and of a result, in bytes (default 1 MiB, at most 60 MiB)
    `middleware`         instances of `Middleware`, outermost first (default none)
    `lifespan`           a function that returns an async context manager, entered once
                         per worker; the value that it yields is `JobContext.state`
    `subscribers`        functions that senders and workers call with each of their events; see `taskflow.events` (default none)
    `telemetry`          instances of the classes in `taskflow.telemetry` (default none)
    `child_initializer`  a function that each child process (``runs_in="process"``) calls once, before its first job
    `child_lifespan`     like `lifespan`, but entered once in each child process; its context manager may be a synchronous one
    `defaults`           options for all jobs that do not set them, even for those declared earlier: a dict
                         with the keys of `DefaultOptions`, for example ``{"max_attempts": 3}`` (default none)

    Raises ConfigurationError for an invalid value, naming the setting.
    """
    default_app().configure(
        broker=broker,
        enqueue_timeout=enqueue_timeout,
        max_payload=max_payload,
        middleware=middleware,
        lifespan=lifespan,
        subscribers=subscribers,
        telemetry=telemetry,
        child_initializer=child_initializer,
        child_lifespan=child_lifespan,
        defaults=defaults,
    )
