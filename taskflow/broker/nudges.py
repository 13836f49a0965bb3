"""Wake-up hints within a process, for any thread and any event loop. Other processes wake the same waiters through a store's own means."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self


class WakeUpFlag:
    """Who listens for what. Ringing is cheap when nobody does, and may be done from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Nudges]] = {}

    def listen(self, topics: Sequence[str]) -> Nudges:
        return Nudges(self, topics)

    def wake(self, topics: Iterable[str]) -> None:
        if not self._listeners:
            return
        with self._lock:
            woken = {nudges for topic in topics for nudges in self._listeners.get(topic, ())}
        _nudge(woken)

    def wake_all(self) -> None:
        """When it is not known what happened: everybody looks."""
        with self._lock:
            woken = {nudges for listeners in self._listeners.values() for nudges in listeners}
        _nudge(woken)

    @property
    def is_heard(self) -> bool:
        return bool(self._listeners)

    def hears(self, topic: str) -> bool:
        """Whether anybody listens for it."""
        return topic in self._listeners

    def join(self, nudges: Nudges, topics: Sequence[str]) -> None:
        with self._lock:
            for topic in topics:
                self._listeners.setdefault(topic, set()).add(nudges)

    def leave(self, nudges: Nudges, topics: Sequence[str]) -> None:
        with self._lock:
            for topic in topics:
                listeners = self._listeners.get(topic, set())
                listeners.discard(nudges)
                if not listeners:
                    self._listeners.pop(topic, None)


class Nudges:
    """One listener, from its making until it is closed; a context manager. One task waits at a time.

    A nudge that comes between two waits ends the second at once: look, then wait, and nothing is missed.
    """

    def __init__(self, flag: WakeUpFlag, topics: Sequence[str]) -> None:
        self._flag = flag
        self._topics = tuple(topics)
        self._lock = threading.Lock()
        self._is_nudged = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        flag.join(self, self._topics)

    async def wait(self, timeout: float | None = None) -> bool:
        """True when nudged, False when `timeout` seconds have passed."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_nudged:
                self._is_nudged = False
                return True
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiter = (loop, waiter)
        timer = loop.call_later(timeout, _finish, waiter) if timeout is not None else None
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._waiter = None
                nudged, self._is_nudged = self._is_nudged, False
        return nudged

    @property
    def is_prompt(self) -> bool:
        """Whether a nudge comes as soon as there is something; else it may be a while."""
        return True

    def nudge(self) -> None:
        """Wake whoever waits here, now or next."""
        _nudge([self])

    def nudged(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None:
        """It is to look, now or next; and the waiter to be woken for it, if there is one, in its loop."""
        with self._lock:
            self._is_nudged = True
            return self._waiter

    def close(self) -> None:
        self._flag.leave(self, self._topics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _nudge(woken: Iterable[Nudges]) -> None:
    """One message to each loop, whatever the number of those who wait in it; none to the one that this is called in."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for nudges in woken:
        if (waiting := nudges.nudged()) is not None:
            loop, waiter = waiting
            by_loop.setdefault(loop, []).append(waiter)
    if not by_loop:
        return
    if (here := _running_loop()) in by_loop:
        _finish_all(by_loop.pop(here))
    for loop, waiters in by_loop.items():
        with contextlib.suppress(RuntimeError):  # its loop has been closed meanwhile: nobody waits there any more
            loop.call_soon_threadsafe(_finish_all, waiters)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _finish_all(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
