"""Background tasks of a broker, which start again after code outside has cancelled them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from taskflow.model.pauses import Pauses, Retries
from taskflow.model.printable import log_safely

log: Final = logging.getLogger("taskflow")

RESTART_PAUSES: Final = Pauses(0.01, 2.0)


class Duty:
    """Runs a coroutine function in a separate task from `start` on, until it returns or `end` is called.

    The task shares the event loop with the application: a job may cancel every task of the loop, and asyncio does that before it closes
    one. So a task that was cancelled, or has failed, starts again only if `is_needed` then returns True. Otherwise it waits for `start`.
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
        """Start the task, unless it is running."""
        if not (self.is_running or self._has_ended):
            self._began_at = time.monotonic()
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._note_end)

    async def end(self, within: float = 0.0) -> None:
        """Wait at most `within` seconds for the task to return, then cancel it."""
        self._has_ended = True
        if (task := self._task) is not None:
            if within:
                await asyncio.wait([task], timeout=within)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._has_ended or (error is None and not task.cancelled()):
            return
        if time.monotonic() - self._began_at > RESTART_PAUSES.longest:
            self._restarts.succeeded()
        pause = self._restarts.failed()
        if error is not None:
            name = self._run.__qualname__
            log_safely(log.error, "%s has failed (%s: %s); restarting it in %.2g s", name, type(error).__name__, error, pause)
        task.get_loop().call_later(pause, self._start_if_needed)

    def _start_if_needed(self) -> None:
        if self._is_needed():
            self.start()
