"""What a broker has for each event loop: connections are bound to the loop that made them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from taskflow.broker import words
from taskflow.model.errors import BrokerUnavailable


class Line(Protocol):
    """A loop's connections."""

    async def close(self) -> None: ...


L = TypeVar("L", bound=Line)


class PerLoop(Generic[L]):
    """One line for each running loop, made at its first use. A child after a fork starts afresh, and does not touch its parent's."""

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._lines: dict[asyncio.AbstractEventLoop, L] = {}
        self._of_parents: list[object] = []
        self._pid = os.getpid()
        self._is_closed = False

    def here(self) -> L:
        """The running loop's. BrokerUnavailable once all is closed."""
        if self._is_closed:
            raise BrokerUnavailable(words.CLOSED)
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._forget_parents()
        found = self._lines.get(loop)
        return found if found is not None else self._begin(loop)

    async def close(self) -> None:
        """This loop's at once, those of others by themselves; twice is harmless."""
        self._is_closed = True
        with self._lock:
            lines, self._lines = self._lines, {}
        for loop, line in lines.items():
            if loop is asyncio.get_running_loop():
                await line.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(line.close(), loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> L:
        with self._lock:
            self._lines = {other: line for other, line in self._lines.items() if not other.is_closed()}
            self._lines[loop] = line = self._make()
        return line

    def _forget_parents(self) -> None:
        """They are kept, since even their end could harm what is shared with the parent."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._of_parents.append(self._lines)
        self._lines = {}
