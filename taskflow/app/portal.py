"""The way in for callers without an event loop: one loop in a thread of its own serves them all."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from typing import Final, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")


def run_sync(awaitable: Awaitable[T]) -> T:
    """Wait for an awaitable from code without an event loop, from any thread: ``run_sync(handle.result(timeout=10))``.

    RuntimeError inside of a running loop, which it would block: await there.
    """
    refuse_inside_a_loop("run_sync()", "await")
    return _holder.portal().call(_await, awaitable)


def refuse_inside_a_loop(name: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name} was called inside of a running event loop, which it would block: use {instead} there")


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Holder:
    """Starts the loop at its first use, and again in a forked child, whose copy has no thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._open: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None

    def portal(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._open = start_blocking_portal("asyncio")
                self._portal = self._open.__enter__()
                atexit.register(self._close, self._pid)
            return self._portal

    def _close(self, pid: int) -> None:
        if self._open is not None and pid == self._pid == os.getpid():
            opened, self._open, self._portal = self._open, None, None
            opened.__exit__(None, None, None)

    def after_fork(self) -> None:
        self._lock = threading.Lock()


_holder: Final = _Holder()
os.register_at_fork(after_in_child=_holder.after_fork)
