"""Runs coroutines for callers without an event loop, in one loop in a background thread."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

# Seconds within which running calls must finish when the process exits.
LAST_WORDS: Final = 5.0


def run_sync(awaitable: Awaitable[T]) -> T:
    """Wait for an awaitable in code without an event loop, and return its result: ``run_sync(handle.result(timeout=10))``.

    It may be called from any thread, and the awaitable sees the caller's context variables. Raises RuntimeError inside
    a running loop, which it would block: use `await` there.
    """
    try:
        refuse_inside_a_loop("run_sync()", "await")
    except RuntimeError:
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # otherwise Python warns that the coroutine was never awaited
        raise
    return _holder.portal().wait_for(awaitable)


def refuse_inside_a_loop(name: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name} was called inside a running event loop, which it would block: use {instead} there")


class _Portal:
    """An event loop in a daemon thread. It is used instead of anyio's portal, which would
    hang if a forked child closed it, because the child does not have its thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._work, name="taskflow-portal", daemon=True)
        self._thread.start()

    def wait_for(self, awaitable: Awaitable[T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(_await(awaitable), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # has no effect unless the wait was interrupted
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LAST_WORDS)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._runner.close()


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Holder:
    """Holds the process's portal and creates it on first use. A forked child creates another one, because threads do not survive a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portal: _Portal | None = None
        self._of_parents: list[_Portal] = []

    def portal(self) -> _Portal:
        with self._lock:
            if self._portal is None:
                self._portal = _Portal()
            return self._portal

    def close(self) -> None:
        portal, self._portal = self._portal, None
        if portal is not None and portal.pid == os.getpid():
            portal.close()

    def after_fork(self) -> None:
        """Set the parent's portal aside without closing it. Its selector is shared, so closing it would stop the parent's loop."""
        self._lock = threading.Lock()
        if self._portal is not None:
            self._of_parents.append(self._portal)
            self._portal = None


_holder: Final = _Holder()
atexit.register(_holder.close)
os.register_at_fork(after_in_child=_holder.after_fork)
