"""Calls functions in the main thread of a child process, on behalf of the event loop in its other thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final

from taskflow.model.errors import JobStopping, StopReason
from taskflow.worker.thread_pool import NeverBegun, carried

STOP_SIGNAL: Final = signal.SIGURG
"""Interrupts the main thread. By default it has no effect, not even in a debugger, and hardly any program uses it."""

# Seconds until the signal is sent again. The first one may come just before a system call, which it then does not interrupt.
_AGAIN_AFTER: Final = 0.02
_LONGEST_PAUSE: Final = 1.0


class _Call:
    """A call to be made in the main thread.

    `asked`  the reason to stop, until it has been passed on to the function, or nothing. Either thread may pop it
    `task`   the task of an async function, once it exists
    """

    __slots__ = ("asked", "function", "is_async", "loop", "outcome", "scope", "task")

    def __init__(self, function: Callable[[], Any], *, is_async: bool = False) -> None:
        self.function = function
        self.is_async = is_async
        self.scope = contextvars.copy_context()
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self.loop.create_future()
        self.asked: list[StopReason] = []
        self.task: asyncio.Task[Any] | None = None

    def is_to_stop(self) -> bool:
        """Return True, once, if the call was asked to stop. May be called from both threads."""
        if self.asked:
            with contextlib.suppress(IndexError):  # the other thread has just popped it
                self.asked.pop()
                return True
        return False


class MainThreadCalls:
    """A queue of calls, which the main thread makes one at a time.

    Async functions share one event loop in the main thread, so that objects bound to it
    stay valid. Plain functions run outside this loop, and may run event loops themselves.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._runner = asyncio.Runner()
        self._main_thread = threading.main_thread().ident
        self._current: _Call | None = None

    # --- called by the other thread ---------------------------------------------------------------------

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have the main thread call a function with this task's context variables. Return
        a future for its outcome. Must be called in the other thread's event loop."""
        self._latest = call = _Call(function)
        self._waiting.put(call)
        return call.outcome

    def run_async(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Future[Any]:
        """Like `run`, but for an async function."""
        self._latest = call = _Call(function, is_async=True)
        call.function = partial(self._run_task, call, function)
        self._waiting.put(call)
        return call.outcome

    def stop(self, reason: StopReason) -> None:
        """Raise JobStopping in the function that is being called, or cancel it if it is async. If its call has not been made yet, the
        outcome is NeverBegun. Must be called before that outcome is known."""
        call = self._latest
        call.asked.append(reason)
        if not call.is_async:
            self._interrupt(call, _AGAIN_AFTER)
        elif call.task is not None and call.is_to_stop():
            call.task.get_loop().call_soon_threadsafe(call.task.cancel)

    def end(self) -> None:
        """Make the main thread stop after the calls that are already queued."""
        self._waiting.put(None)

    def _interrupt(self, call: _Call, pause: float) -> None:
        """Send the signal until it takes effect, or the call has ended."""
        if call.asked and not call.outcome.done() and self._main_thread is not None:
            signal.pthread_kill(self._main_thread, STOP_SIGNAL)
            call.loop.call_later(pause, self._interrupt, call, min(2 * pause, _LONGEST_PAUSE))

    # --- in the main thread -----------------------------------------------------------------------------

    def make(self) -> None:
        """Make the queued calls until `end` is called."""
        signal.signal(STOP_SIGNAL, self._stop_current)
        with self._runner:
            while (call := self._waiting.get()) is not None:
                self._make(call)

    def _make(self, call: _Call) -> None:
        value, error = None, None
        try:
            if call.is_to_stop():
                raise NeverBegun
            try:
                self._current = call
                value = call.scope.run(call.function)
            finally:
                self._current = None
        except BaseException as raised:
            error = carried(raised)
        with contextlib.suppress(RuntimeError):  # the other thread's loop is closed, so nothing waits
            call.loop.call_soon_threadsafe(_settle, call.outcome, value, error)

    def _stop_current(self, number: int, frame: FrameType | None) -> None:
        """Raise JobStopping if a plain function was interrupted. If `_make` itself was, the function has not begun or has returned."""
        call = self._current
        if call is not None and call.asked and frame is not None and frame.f_code is not _MAKE:
            raise JobStopping(call.asked.pop())

    def _run_task(self, call: _Call, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        loop = self._runner.get_loop()
        call.task = task = loop.create_task(function(), context=contextvars.copy_context())
        if call.is_to_stop():
            task.cancel()
        return loop.run_until_complete(task)


_MAKE: Final = MainThreadCalls._make.__code__


def _settle(outcome: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(value)
    else:
        outcome.set_exception(error)
