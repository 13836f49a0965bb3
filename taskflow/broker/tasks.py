"""The tasks, deadlines and connections that brokers have in their event loops."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, Protocol, TypeVar

from taskflow.model import wording
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.printable import log_safely

# --- eager tasks -----------------------------------------------------------------------------------------------

# On Python 3.12 and newer, the first step of a task runs at once, so a task that never waits needs no turn of the event loop.

if sys.version_info >= (3, 12):

    def started(loop: asyncio.AbstractEventLoop, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(run, loop=loop, eager_start=True)

else:

    def started(loop: asyncio.AbstractEventLoop, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return loop.create_task(run)

# --- deadlines -------------------------------------------------------------------------------------------------------

BLOCKED: Final = 0.05
"""If the timer fires more than this many seconds late, the loop was blocked, and the answer may
have arrived unread. The deadline is then extended once, by this many seconds."""


class Deadline:
    """Guards one operation at a time, in the event loop where it was created. Calls `late` if the operation takes too long.

    One timer serves many operations: if it fires too early, it is set again. Setting
    and cancelling a timer for each operation would cost as much as sending a command.
    """

    __slots__ = ("_due_at", "_is_extended", "_late", "_looks_at", "_loop", "_timer")

    def __init__(self, late: Callable[[], None]) -> None:
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._due_at = self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._is_extended = False

    def begin(self, seconds: float) -> None:
        """Start guarding an operation that may take `seconds`."""
        due_at = self._due_at = self._loop.time() + seconds
        self._is_extended = False
        if due_at < self._looks_at:
            self._look_at(due_at)

    def end(self) -> None:
        self._due_at = math.inf

    def drop(self) -> None:
        """Stop guarding the current operation, if any, and cancel the timer."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._looks_at = None, math.inf

    def _look_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = instant
        self._timer = self._loop.call_at(instant, self._look)

    def _look(self) -> None:
        looked_at = self._looks_at
        self._timer, self._looks_at = None, math.inf
        if self._due_at <= looked_at and not self._is_extended and (now := self._loop.time()) > looked_at + BLOCKED:
            self._is_extended, self._due_at = True, now + BLOCKED
        if self._due_at <= looked_at:
            self.end()
            self._late()
        elif self._due_at < math.inf:
            self._look_at(self._due_at)


# --- background tasks ------------------------------------------------------------------------------------------------

log: Final = logging.getLogger("taskflow")

RESTART_PAUSES: Final = Pauses(0.01, 2.0)


class Duty:
    """Runs a coroutine function in a separate task from `start` on, until it returns or `end` is called.

    The task shares the event loop with the application: a job may cancel every task of the loop, and asyncio.run() does so before closing
    the loop. So a task that was cancelled or failed is restarted after a pause only if `is_needed` then returns True. Otherwise it waits
    for `start`.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]], is_needed: Callable[[], bool]) -> None:
        self._run = run
        self._is_needed = is_needed
        self._task: asyncio.Task[None] | None = None
        self._restarts = Retries(RESTART_PAUSES)
        self._began_at = 0.0
        self._has_ended = False

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start the task, unless it is running or `end` was called."""
        if not (self.is_running or self._has_ended):
            self._began_at = time.monotonic()
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._record_end)

    async def end(self, within: float = 0.0) -> None:
        """Wait at most `within` seconds for the task to return, then cancel it. It can't be started again."""
        self._has_ended = True
        if (task := self._task) is not None:
            if within:
                await asyncio.wait([task], timeout=within)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _record_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._has_ended or (error is None and not task.cancelled()):
            return
        if time.monotonic() - self._began_at > RESTART_PAUSES.longest:
            self._restarts.succeeded()
        pause = self._restarts.failed()
        if error is not None:
            name = self._run.__qualname__
            log_safely(log.error, "%s failed (%s: %s); restarting it in %.2g s", name, type(error).__name__, error, pause)
        task.get_loop().call_later(pause, self._start_if_needed)

    def _start_if_needed(self) -> None:
        if self._is_needed():
            self.start()


# --- connections for each event loop ---------------------------------------------------------------------------------


class LoopBound(Protocol):
    """One or more connections bound to an event loop."""

    async def close(self) -> None: ...


L = TypeVar("L", bound=LoopBound)


class PerLoop(Generic[L]):
    """Holds one connection for each event loop, opened on first use. A forked child opens its own and does not touch its parent's."""

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, L] = {}
        self._of_parents: list[object] = []
        self._pid = os.getpid()
        self._is_closed = False

    def here(self) -> L:
        """Return the running loop's connection, opening it on first use. Raises BrokerUnavailable after `close`."""
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
