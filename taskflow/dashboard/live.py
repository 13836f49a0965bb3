"""Keeps pages up to date while people watch. Nothing runs, and the store is not asked, while no one does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from taskflow.app.operate import operate
from taskflow.dashboard.guard import Access
from taskflow.dashboard.rendering import is_fragment
from taskflow.model.errors import TaskflowError

INTERVAL: Final = 1.0  # seconds between looks at the store, and for which a page is shared
MAX_STREAM: Final = 20.0  # seconds: a server that stops waits for its streams, and a browser opens the next one by itself
RETRY: Final = 1_000  # milliseconds

Endpoint = Callable[[Request], Awaitable[Response]]


class Sampler:
    """Looks at the store once a second for all watchers of an event loop. `digest` changes when the store does; empty at first."""

    def __init__(self) -> None:
        self.digest = ""
        self.is_ending = False
        self._watchers = set[asyncio.Event]()
        self._task: asyncio.Task[None] | None = None

    async def changes(self, seen: str) -> AsyncIterator[str]:
        """Yield events for a browser that has seen this digest, or an empty one: "seen" at first, and "change" when the digest changes."""
        mine = asyncio.Event()
        self._watchers.add(mine)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._sample())
        ends_at = asyncio.get_running_loop().time() + MAX_STREAM
        try:
            yield f"retry: {RETRY}\n\n"
            while not self.is_ending:
                if self.digest not in ("", seen):
                    yield f"event: {'change' if seen else 'seen'}\nid: {self.digest}\ndata: 1\n\n"
                    seen = self.digest
                mine.clear()
                async with asyncio.timeout_at(ends_at):
                    await mine.wait()
        except TimeoutError:
            return
        finally:
            self._watchers.discard(mine)
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    def end(self) -> None:
        """End all streams, so that a server that waits for them stops at once. It is called on their event loop."""
        self.is_ending = True
        for watcher in self._watchers:
            watcher.set()

    async def _sample(self) -> None:
        while True:
            try:
                queues, workers, totals = await asyncio.gather(operate.queues(), operate.workers(), operate.metrics())
            except TaskflowError:
                pass  # the next page that a browser fetches says so
            else:
                counts = [(queue.name, queue.is_paused, queue.counts) for queue in queues]
                state = [counts, [(worker.name, worker.running, worker.is_lost) for worker in workers], totals]
                digest = hashlib.sha256(msgspec.msgpack.encode(state)).hexdigest()[:16]
                if digest != self.digest:
                    self.digest = digest
                    for watcher in self._watchers:
                        watcher.set()
            await asyncio.sleep(INTERVAL)


class Live:
    """The stream of changes, and the pages that browsers fetch after a change: each is made once a second for all."""

    def __init__(self) -> None:
        self._samplers = WeakKeyDictionary[asyncio.AbstractEventLoop, Sampler]()
        self._pages: dict[tuple[object, ...], tuple[float, asyncio.Task[Response]]] = {}

    def sampler(self) -> Sampler:
        """Return the sampler of the running event loop."""
        return self._samplers.setdefault(asyncio.get_running_loop(), Sampler())

    async def stream(self, request: Request) -> Response:
        events = self.sampler().changes(request.headers.get("last-event-id", ""))
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})  # for nginx

    def page(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint, which answers equal requests of the script with one page for a second. A person's request is not shared."""

        async def shared(request: Request) -> Response:
            if not is_fragment(request):
                return await endpoint(request)
            loop, access = asyncio.get_running_loop(), request.scope["taskflow.access"]
            assert isinstance(access, Access)
            for old in [key for key, (until, _) in self._pages.items() if until < loop.time()]:
                del self._pages[old]
            key = (loop, request.scope.get("root_path"), str(request.url), access.actions, access.show_arguments)
            if key not in self._pages:
                self._pages[key] = loop.time() + INTERVAL, loop.create_task(_awaited(endpoint(request)))
            made: Any = await asyncio.shield(self._pages[key][1])
            return HTMLResponse(made.body, made.status_code)

        return shared


async def _awaited(answer: Awaitable[Response]) -> Response:
    return await answer
