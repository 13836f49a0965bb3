"""Keeps pages up to date while they are open in a browser. Otherwise nothing runs, and the store isn't queried."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from taskflow.app.app import default_app
from taskflow.app.operate import operate
from taskflow.dashboard.guard import Access
from taskflow.dashboard.memo import SEEN, remembered
from taskflow.dashboard.rendering import LIVE, POLLS, is_fragment
from taskflow.model.errors import TaskflowError
from taskflow.model.schedule import ScheduleRecord

INTERVAL: Final = 1.0  # seconds between two checks of the store; a page is shared until the next check
MAX_FACTOR: Final = 8.0  # with more watchers, the interval grows by up to this factor, so that checks cost the host little
TIMES: Final = 10  # the pause between two checks is at least this many times as long as the last check, to spare a slow store
SPACING: Final = 0.2  # seconds between the notifications of two watchers, so that the host does not make several pages at once
MAX_SPREAD: Final = 2.0  # seconds until the last watcher is notified
MAX_STREAM: Final = 20.0  # seconds that a stream lasts: a stopping server waits for streams, and browsers open the next one by themselves
MAX_AGE: Final = 10.0  # seconds after which a page is fetched again without a change, to update ages and the progress of jobs
READ: Final = (operate.queues, operate.workers, operate.metrics, operate.paused_jobs)  # what a check reads, and pages then reuse
AWAY: Final = "away"
RETRY: Final = 1_000  # milliseconds

Endpoint = Callable[[Request], Awaitable[Response]]


class Sampler:
    """Checks the store for all watchers of an event loop, and for browsers that poll: every second for one, every 8 s for many."""

    def __init__(self) -> None:
        self.is_ending = False
        self.found: dict[Callable[[], Awaitable[Any]], Any] = {}
        self._state = ""
        self._watchers = set[asyncio.Event]()
        self._task: asyncio.Task[None] | None = None
        self._check: asyncio.Task[str] | None = None
        self._checked_at = 0.0
        self._took = 0.0

    async def changes(self, seen: str) -> AsyncIterator[str]:
        """Yield server-sent events for a browser that has last seen this digest (empty for none): "state" with each new digest, and "away"
        when the store does not answer. End after `MAX_STREAM` seconds."""
        mine, sent = asyncio.Event(), seen
        self._watchers.add(mine)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._sample())
        ends_at = asyncio.get_running_loop().time() + MAX_STREAM
        try:
            yield f"retry: {RETRY}\n\n"
            while not self.is_ending:
                if self._state not in ("", sent):
                    sent = self._state
                    yield f"event: {AWAY}\ndata: 1\n\n" if sent == AWAY else f"event: state\nid: {sent}\ndata: 1\n\n"
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
        """End all streams, so that a server that waits for them can stop at once. Call this on the streams' event loop."""
        self.is_ending = True
        for watcher in self._watchers:
            watcher.set()

    @property
    def interval(self) -> float:
        return max(INTERVAL * min(max(1.0, len(self._watchers)), MAX_FACTOR), TIMES * self._took)

    async def digest(self) -> str:
        """Return a digest of the store's state from a recent check, or `AWAY` if the store did not answer."""
        loop = asyncio.get_running_loop()
        if self._check is None or (self._check.done() and loop.time() >= self._checked_at + self.interval):
            self._checked_at = loop.time()
            self._check = loop.create_task(self._check_store())
        return await asyncio.shield(self._check)

    async def _sample(self) -> None:
        while True:
            await self.digest()
            await asyncio.sleep(self.interval)

    async def _check_store(self) -> str:
        self._took, clock = 0.0, asyncio.get_running_loop().time
        try:
            found: list[Any] = await asyncio.gather(*(read() for read in READ), remembered("schedules", _schedules))
        except TaskflowError:
            state = AWAY
        else:
            [queues, workers, *others] = found
            self.found.update(zip(READ, found, strict=False))
            counts = [(queue.name, queue.is_paused, queue.counts) for queue in queues]
            seen = [counts, [(worker.name, worker.busy, worker.is_lost) for worker in workers], others, int(time.time() // MAX_AGE)]
            state, self._took = hashlib.sha256(msgspec.msgpack.encode(seen)).hexdigest()[:16], clock() - self._checked_at
        if state != self._state:
            self._state = state
            spacing = min(SPACING, MAX_SPREAD / max(1, len(self._watchers)))
            for number, watcher in enumerate(self._watchers):
                asyncio.get_running_loop().call_later(number * spacing, watcher.set)
        return state


async def _schedules() -> list[ScheduleRecord]:
    return await default_app().client().call(lambda broker: broker.admin.schedules(None))


class Live:
    """The stream of changes, and the pages that browsers fetch after a change. A page is rendered at most once per check of the store."""

    def __init__(self) -> None:
        self._samplers = WeakKeyDictionary[asyncio.AbstractEventLoop, Sampler]()
        self._pages: dict[tuple[object, ...], tuple[float, asyncio.Future[Response]]] = {}

    def sampler(self) -> Sampler:
        """Return the sampler of the running event loop."""
        return self._samplers.setdefault(asyncio.get_running_loop(), Sampler())

    async def stream(self, request: Request) -> Response:
        if POLLS in request.scope:
            raise HTTPException(404, "This server cannot stream changes.")
        events = self.sampler().changes(request.headers.get("last-event-id", ""))
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})  # nginx must not buffer

    def page(self, endpoint: Endpoint) -> Endpoint:
        """Wrap an endpoint: until the next check of the store, identical requests by the script get the same page, or 304 if the browser
        already has it. Whole pages are not shared."""

        async def shared(request: Request) -> Response:
            request.scope[LIVE] = True
            if not is_fragment(request):
                return await endpoint(request)
            sampler = self.sampler()
            digest = await sampler.digest()
            headers = {} if digest == AWAY else {"ETag": f'"{digest}"'}
            if headers and request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304, headers=headers)
            loop, access = asyncio.get_running_loop(), request.scope["taskflow.access"]
            assert isinstance(access, Access)
            for old in [key for key, (until, _) in self._pages.items() if until < loop.time()]:
                del self._pages[old]
            # The key includes the digest, because a page must not be older than its ETag.
            key = (loop, request.scope.get("root_path"), str(request.url), access.actions, access.show_arguments, digest)
            if key not in self._pages:
                request.scope[SEEN] = {} if digest == AWAY else sampler.found
                self._pages[key] = loop.time() + sampler.interval, asyncio.ensure_future(endpoint(request))
            made: Any = await asyncio.shield(self._pages[key][1])
            return HTMLResponse(made.body, made.status_code, headers)

        return shared
