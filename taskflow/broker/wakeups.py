"""Delivers wake-ups within a process, across threads and event loops. Each store has its own way to wake other processes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self


class WakeUpFlag:
    """Wakes the tasks that wait for given topics. It can be used from any thread, and costs little while no task is waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Waiter]] = {}

    def listen(self, topics: Sequence[str]) -> Waiter:
        return Waiter(self, topics)

    def wake(self, topics: Iterable[str]) -> None:
        if not self._listeners:
            return
        with self._lock:
            woken = {waiter for topic in topics for waiter in self._listeners.get(topic, ())}
        _nudge(woken)

    def wake_some(self, topics: Iterable[str], number: int) -> None:
        """Wake at most `number` of the tasks that are waiting for these topics. Waiters whose task is busy are nudged too, so that their
        next wait returns at once."""
        if not self._listeners:
            return
        with self._lock:
            listeners = {waiter for topic in topics for waiter in self._listeners.get(topic, ())}
        waiting = [waiter for waiter in listeners if waiter.is_waiting]
        _nudge([*waiting[:number], *(waiter for waiter in listeners if waiter not in waiting)])

    def waiting(self, topics: Iterable[str]) -> int:
        """Return the number of tasks that are waiting for one of these topics."""
        with self._lock:
            return sum(waiter.is_waiting for waiter in {waiter for topic in topics for waiter in self._listeners.get(topic, ())})

    def wake_all(self) -> None:
        """Wake every waiter. Used when it is unknown which topics have changed."""
        with self._lock:
            woken = {waiter for listeners in self._listeners.values() for waiter in listeners}
        _nudge(woken)

    @property
    def is_heard(self) -> bool:
        return bool(self._listeners)

    def topics(self) -> list[str]:
        """Return all topics that have a waiter."""
        with self._lock:
            return list(self._listeners)

    def hears(self, topic: str) -> bool:
        """Return True if the topic has a waiter."""
        return topic in self._listeners

    def join(self, waiter: Waiter, topics: Sequence[str]) -> None:
        with self._lock:
            for topic in topics:
                self._listeners.setdefault(topic, set()).add(waiter)

    def leave(self, waiter: Waiter, topics: Sequence[str]) -> None:
        with self._lock:
            for topic in topics:
                listeners = self._listeners.get(topic, set())
                listeners.discard(waiter)
                if not listeners:
                    self._listeners.pop(topic, None)


class Waiter:
    """Waits for nudges for some topics, and receives them from its creation
    until `close`. It is a context manager. Only one task may wait at a time.

    If a nudge arrives while no task is waiting, the next `wait` returns immediately. So a caller that checks and then waits misses nothing.
    """

    def __init__(self, flag: WakeUpFlag, topics: Sequence[str]) -> None:
        self._flag = flag
        self._topics = tuple(topics)
        self._lock = threading.Lock()
        self._is_nudged = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        flag.join(self, self._topics)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for a nudge. Return True when one arrives, or False after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_nudged:
                self._is_nudged = False
                return True
            future: asyncio.Future[None] = loop.create_future()
            self._waiting = (loop, future)
        timer = loop.call_later(timeout, _finish_all, (future,)) if timeout is not None else None
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._waiting = None
                nudged, self._is_nudged = self._is_nudged, False
        return nudged

    @property
    def is_waiting(self) -> bool:
        """Return True while a task is waiting and has not been nudged."""
        return self._waiting is not None and not self._is_nudged

    @property
    def is_prompt(self) -> bool:
        """Return True if nudges arrive at once. Otherwise they may be late."""
        return True

    def nudge(self) -> None:
        """End the current wait, or the next one if no task is waiting."""
        _nudge([self])

    def nudged(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None:
        """Record a nudge. If a task is waiting, return its event loop and the future that it awaits."""
        with self._lock:
            self._is_nudged = True
            return self._waiting

    def close(self) -> None:
        self._flag.leave(self, self._topics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _nudge(woken: Iterable[Waiter]) -> None:
    """Nudge these waiters, with one message to each event loop. Waiters in the current loop are woken directly."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in woken:
        if (waiting := waiter.nudged()) is not None:
            loop, future = waiting
            by_loop.setdefault(loop, []).append(future)
    if not by_loop:
        return
    if (here := _running_loop()) in by_loop:
        _finish_all(by_loop.pop(here))
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits in it
            loop.call_soon_threadsafe(_finish_all, futures)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _finish_all(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
