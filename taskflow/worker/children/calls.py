"""Calls functions in the main thread of a child process, on behalf of the event loop in its other thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, NamedTuple

from taskflow.worker.threads import carried


class _Call(NamedTuple):
    function: Callable[[], Any]
    scope: contextvars.Context
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[Any]


class MainThreadCalls:
    """A queue of calls, which the main thread makes one at a time.

    Async functions share one event loop in the main thread, so that objects bound to it
    stay valid. Plain functions run outside this loop, and may run event loops themselves.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[_Call | None] = SimpleQueue()
        self._runner = asyncio.Runner()

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have the main thread call a function with this task's context variables. Return
        a future for its outcome. Must be called in the other thread's event loop."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        self._asked.put(_Call(function, contextvars.copy_context(), loop, outcome))
        return outcome

    def run_async(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Future[Any]:
        """Like `run`, but for an async function."""
        return self.run(lambda: self._runner.run(function(), context=contextvars.copy_context()))

    def end(self) -> None:
        """Make the main thread stop after the calls that are already queued."""
        self._asked.put(None)

    def make(self) -> None:
        """Make the queued calls until `end` is called. Runs in the main thread."""
        with self._runner:
            while (call := self._asked.get()) is not None:
                _make(call)


def _make(call: _Call) -> None:
    value, error = None, None
    try:
        value = call.scope.run(call.function)
    except BaseException as raised:
        error = carried(raised)
    with contextlib.suppress(RuntimeError):  # the other thread's loop is closed, so nothing waits
        call.loop.call_soon_threadsafe(_settle, call.outcome, value, error)


def _settle(outcome: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(value)
    else:
        outcome.set_exception(error)
