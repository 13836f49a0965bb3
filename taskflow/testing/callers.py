"""Runs job functions in the thread of a synchronous caller while it waits, or in the thread in which Django uses its connections."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar, copy_context
from types import SimpleNamespace
from typing import Any, Final, TypeVar

from taskflow.app.portal import CallersThread, wait

T = TypeVar("T")

callers_thread: Final[ContextVar[CallersThread | None]] = ContextVar("taskflow_callers_thread", default=None)
"""The thread that waits in `run_sync` for the current coroutine, if this thread runs functions while it waits; otherwise None."""


def sync_to_async(function: Callable[[], T]) -> asyncio.Future[T]:
    """Start a function in the thread in which Django uses its connections, and return the future. Django must be loaded."""
    outcome: Awaitable[T] = sys.modules["asgiref.sync"].sync_to_async(function, thread_sensitive=True)()
    return asyncio.ensure_future(outcome)


djangos_thread: Final = SimpleNamespace(run=sync_to_async, give_up=lambda outcome: None, close=lambda: None)
"""Presents Django's thread as a `ThreadPool`. The thread is neither replaced nor ended."""


def is_django_loaded() -> bool:
    return "django.db" in sys.modules and bool(sys.modules["django.conf"].settings.configured)


def wait_inline(awaitable: Awaitable[T]) -> T:
    """Wait like `run_sync`, and run in this thread the functions that `callers_thread` and Django's `sync_to_async` pass to it."""
    scope, thread = copy_context(), CallersThread()
    scope.run(callers_thread.set, thread)
    if not is_django_loaded():
        return scope.run(thread.serve, awaitable)
    asgiref: Any = sys.modules["asgiref.sync"]
    its_loop = getattr(asgiref.SyncToAsync.threadlocal, "main_event_loop", None)

    async def within() -> T:
        asgiref.AsyncToSync.executors.current = thread
        return await awaitable

    try:
        return scope.run(thread.serve, within())
    finally:
        asgiref.SyncToAsync.threadlocal.main_event_loop = its_loop  # otherwise, a later `async_to_sync` would use the portal's loop


def wait_for_django(awaitable: Awaitable[T]) -> T:
    return wait_inline(awaitable) if is_django_loaded() else wait(awaitable)


@asynccontextmanager
async def with_djangos_thread() -> AsyncIterator[bool]:
    """Yield whether plain jobs must run in the thread in which Django uses its connections. They must if a connection is open there, or if
    a transaction is open in the event loop's thread.

    Jobs can't use a transaction that was opened in the event loop's thread. While one is open, a job's query raises AssertionError; if any
    did, leaving the block raises it again.
    """
    if not is_django_loaded():
        yield False
        return
    connections = sys.modules["django.db"].connections
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)  # inside a loop, the connections of this thread are hidden
    try:
        apart = [each.alias for each in connections.all(initialized_only=True) if each.in_atomic_block]
    finally:
        asyncio._set_running_loop(loop)
    refused: list[str] = []

    def refuse(execute: object, sql: str, params: object, many: bool, context: dict[str, Any]) -> None:
        refused.append(context["connection"].alias)
        raise AssertionError(_APART.format(refused[0]))

    def begin() -> bool:
        for alias in apart:
            connections[alias].execute_wrappers.append(refuse)
        return bool(apart) or any(each.connection is not None for each in connections.all(initialized_only=True))

    def end() -> None:
        for alias in apart:
            connections[alias].execute_wrappers.remove(refuse)

    async with AsyncExitStack() as stack:
        is_in_use = await sync_to_async(begin)
        stack.push_async_callback(lambda: sync_to_async(end))
        yield is_in_use
    if refused:
        raise AssertionError(_APART.format(refused[0]))


_APART: Final = (
    "a job or middleware queried the database {!r} outside of the test's transaction, and would not see its rows. The test is a "
    "coroutine, and its transaction belongs to the thread of its event loop. Make the test a plain function, with "
    "run_sync(taskflow_jobs.run_all()); or let its rows be committed, with TransactionTestCase or @pytest.mark.django_db(transaction=True)"
)
