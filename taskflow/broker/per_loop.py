"""Keeps a connection for each event loop, because a connection is bound to the loop that opened it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from taskflow.model import wording
from taskflow.model.errors import BrokerUnavailable


class LoopBound(Protocol):
    """One or more connections bound to an event loop."""

    async def close(self) -> None: ...


L = TypeVar("L", bound=LoopBound)


class PerLoop(Generic[L]):
    """Holds one connection for each event loop, opened on first use. A
    forked child opens its own connections and does not touch its parent's."""

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, L] = {}
        self._of_parents: list[object] = []
        self._pid = os.getpid()
        self._is_closed = False

    def here(self) -> L:
        """Return the running loop's connection. Raises BrokerUnavailable after `close`."""
        if self._is_closed:
            raise BrokerUnavailable(wording.CLOSED)
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._forget_parents()
        found = self._by_loop.get(loop)
        return found if found is not None else self._begin(loop)

    async def close(self) -> None:
        """Close this loop's connection at once, and make the other loops close theirs. A second call does nothing."""
        self._is_closed = True
        with self._lock:
            by_loop, self._by_loop = self._by_loop, {}
        for loop, connection in by_loop.items():
            if loop is asyncio.get_running_loop():
                await connection.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(connection.close(), loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> L:
        with self._lock:
            self._by_loop = {other: connection for other, connection in self._by_loop.items() if not other.is_closed()}
            self._by_loop[loop] = connection = self._make()
        return connection

    def _forget_parents(self) -> None:
        """In a forked child, set the parent's connections aside but keep them alive:
        their destructors could disturb resources that are shared with the parent."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._of_parents.append(self._by_loop)
        self._by_loop = {}
