"""Runs coroutines for callers without an event loop, in a single loop in a background thread: the portal."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # event loops would import it later, which fails once the main thread has ended
import inspect
import os
import queue
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, TypeVar

T = TypeVar("T")

_waits: Callable[[Awaitable[Any]], Any] | None = None
"""The function that `run_sync` calls in place of `wait` in tests: see `wait_by`."""

# Seconds to wait for the portal's thread when the process exits. The thread cancels the calls that are still running.
STOP_TIMEOUT: Final = 5.0


def run_sync(awaitable: Awaitable[T]) -> T:
    """Wait for an awaitable in code without an event loop, and return its result: ``run_sync(handle.result(timeout=10))``.

    It may be called from any thread, and the awaitable sees the caller's context variables. Raises RuntimeError inside
    a running loop, which it would block: use `await` there. Also raises RuntimeError if Python is already exiting.
    """
    try:
        refuse_inside_a_loop("run_sync()", "await")
    except RuntimeError:
        _discard(awaitable)
        raise
    return block_on(awaitable)


def block_on(awaitable: Awaitable[T]) -> T:
    """Like `run_sync`, but may be called inside a running loop, which it blocks."""
    result: T = (_waits or wait)(awaitable)
    return result


def wait(awaitable: Awaitable[T]) -> T:
    """Run an awaitable in the portal, wait for it, and return its result."""
    return _portal_for(awaitable).wait_for(awaitable)


def _portal_for(awaitable: Awaitable[object]) -> _Portal:
    try:
        return _holder.portal()
    except RuntimeError:
        _discard(awaitable)
        raise


def _discard(awaitable: Awaitable[object]) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()  # otherwise Python warns that the coroutine was never awaited


_AT_EXIT: Final = "taskflow can no longer reach the broker, because Python is exiting: do this before the program ends"


INTERRUPTED: Final = (
    "taskflow cannot reach the broker here: a signal handler or `__del__` has interrupted its work in this thread. Send from the "
    "program's normal code"
)
"""The message if the caller would wait for a lock that its thread holds, or for an answer that only its thread can give."""

_STORE_THREADS: Final = "taskflow-sqlite-"
"""How the names of a store's threads begin. A call that waits in such a thread would never end, because the thread has to answer it."""


class CallersThread(Executor):
    """Runs functions in the thread of a synchronous caller, for a coroutine in the portal's loop."""

    def __init__(self) -> None:
        self._queue = queue.SimpleQueue[Callable[[], None] | None]()

    def serve(self, awaitable: Awaitable[T]) -> T:
        """Run the awaitable in the portal, and submitted functions in this thread until it's done. Return its result."""
        future = _portal_for(awaitable).submit(awaitable)
        future.add_done_callback(lambda _: self._queue.put(None))
        try:
            while (function := self._queue.get()) is not None:
                function()
            return future.result()
        except BaseException:
            future.cancel()  # has no effect unless the wait was interrupted
            raise

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a function for the thread that called `serve`, and return the function's future."""
        future = Future[T]()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, KeyboardInterrupt):
                    raise

        self._queue.put(run)
        return future


def wait_by(waits: Callable[[Awaitable[Any]], Any] | None) -> Callable[[Awaitable[Any]], Any] | None:
    """Make `run_sync` and similar functions wait with this function, or if it is None, with `wait`. Return the previous function."""
    global _waits
    former, _waits = _waits, waits
    return former


def refuse_inside_a_loop(name: str, instead: str) -> None:
    """Raise RuntimeError where the caller would wait forever: inside a running loop, in a thread of a store, or while Python exits."""
    if sys.is_finalizing():
        raise RuntimeError(_AT_EXIT)
    if threading.current_thread().name.startswith(_STORE_THREADS):
        raise RuntimeError(INTERRUPTED)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name} was called inside a running event loop, which it would block: use {instead} there")


class _Portal:
    """An event loop in a daemon thread. anyio's portal won't do: a forked child that closed it would wait forever for a missing thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._work, name="taskflow-portal", daemon=True)
        self._thread.start()

    def submit(self, awaitable: Awaitable[T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(_await(awaitable), self._loop)

    def wait_for(self, awaitable: Awaitable[T]) -> T:
        future = self.submit(awaitable)
        try:
            return future.result()
        except RuntimeError as error:
            if threading.main_thread().is_alive():
                raise
            raise RuntimeError(f"{_AT_EXIT} ({error})") from error  # at exit, Python runs no more functions in threads
        except BaseException:
            future.cancel()  # has no effect unless the wait was interrupted
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._runner.close()


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Holder:
    """Holds the process's portal and creates it on first use. A forked child creates another one, because threads do not survive a fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_starting = False
        self._portal: _Portal | None = None
        self._is_closed = False
        self._of_parents: list[_Portal] = []

    def portal(self) -> _Portal:
        """Return the portal, starting it on first use. Raises RuntimeError where a caller would wait forever: while Python exits, or in a
        signal handler that interrupted the start."""
        if self._is_closed or sys.is_finalizing():
            raise RuntimeError(_AT_EXIT)
        with self._lock:
            if self._portal is None:
                if self._is_starting:
                    raise RuntimeError(INTERRUPTED)
                self._is_starting = True
                try:
                    self._portal = _Portal()
                finally:
                    self._is_starting = False
            return self._portal

    def close(self) -> None:
        self._is_closed = True
        portal, self._portal = self._portal, None
        if portal is not None and portal.pid == os.getpid():
            portal.close()

    def after_fork(self) -> None:
        """Set the parent's portal aside without closing it. Parent and child share its selector, so closing it would stop the parent's
        loop."""
        self._lock, self._is_starting = threading.RLock(), False
        if self._portal is not None:
            self._of_parents.append(self._portal)
            self._portal = None


_holder: Final = _Holder()
# At exit, finalizers close the portal and the brokers, the newest first. Functions that an application registers with atexit after
# declaring its jobs run before all these finalizers, so they can send jobs.
weakref.finalize(_holder, _holder.close)
os.register_at_fork(after_in_child=_holder.after_fork)
