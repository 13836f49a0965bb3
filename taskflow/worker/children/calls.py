"""The main thread of a child process: it calls what the other thread's event loop asks it to, and hands back what comes of it."""

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
    """One after the other. Async functions run in an event loop of the main thread's own, the same for all, so that what is bound to it
    lasts; plain ones run outside of it, and may have loops of theirs."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[_Call | None] = SimpleQueue()
        self._runner = asyncio.Runner()

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """From the other thread's loop: call it in the main thread, with this task's context variables."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        self._asked.put(_Call(function, contextvars.copy_context(), loop, outcome))
        return outcome

    def run_async(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Future[Any]:
        """The same for an async function."""
        return self.run(lambda: self._runner.run(function(), context=contextvars.copy_context()))

    def end(self) -> None:
        """After what it is at."""
        self._asked.put(None)

    def make(self) -> None:
        """In the main thread, until `end`."""
        with self._runner:
            while (call := self._asked.get()) is not None:
                _make(call)


def _make(call: _Call) -> None:
    value, error = None, None
    try:
        value = call.scope.run(call.function)
    except BaseException as raised:
        error = carried(raised)
    with contextlib.suppress(RuntimeError):  # the other thread's loop is closed: nobody waits any more
        call.loop.call_soon_threadsafe(_settle, call.outcome, value, error)


def _settle(outcome: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(value)
    else:
        outcome.set_exception(error)
