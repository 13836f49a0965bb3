"""A dashboard that a real browser can open: a store of the suite, and a server, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from socket import socket
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from taskflow.app.app import default_app
from taskflow.dashboard import Access, dashboard
from taskflow.dashboard.guard import Authorize
from tests.support.world import World

T = TypeVar("T")

ADA = Access("ada", actions=True, show_arguments=True)
PREFIX = "/admin/jobs"
TIMEOUT = 60.0  # seconds


class Stage:
    """Inside its block, the dashboard of a new store is at `url`. The thread is needed because playwright's API blocks this one.

    `opened` returns a world, or what the dashboard takes for a broker. Only one stage of a process can be open at a time.
    """

    def __init__(self, opened: Callable[[], Any], authorize: Authorize = lambda request: ADA) -> None:
        self._opened = opened
        self._authorize = authorize
        self._began = Future[Any]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._socket = socket()
        self._socket.bind(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = self.origin + PREFIX
        self._thread.start()
        self.world = self._began.result(TIMEOUT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(TIMEOUT)
        self._socket.close()
        assert not self._thread.is_alive()

    def run(self, act: Callable[[World], Awaitable[T]]) -> T:
        """Do something with the store, on the event loop of the server, and return what comes of it."""

        async def acted() -> T:
            return await act(self.world)

        return asyncio.run_coroutine_threadsafe(acted(), self._loop).result(TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                if self._began.done():
                    raise
                self._began.set_exception(error)

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        app = Starlette(routes=[Mount(PREFIX, dashboard(authorize=self._authorize))])
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1)
        async with AsyncExitStack() as stack:
            world = self._opened()
            broker = (await stack.enter_async_context(world)).broker if isinstance(world, World) else world
            stack.enter_context(default_app().using(broker))
            server = _Server(config)
            serving = asyncio.create_task(server.serve(sockets=[self._socket]))
            self._began.set_result(world)
            await self._ending.wait()
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """It leaves signals to pytest. A thread cannot handle them."""

    def install_signal_handlers(self) -> None: ...
