"""The event loop of a worker's process. It goes on whatever jobs do to it, for example if one stops it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from taskflow.app.context import running
from taskflow.model.safe_log import log_safely

log: Final = logging.getLogger("taskflow.worker")

T = TypeVar("T")


def run_through(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end, through whatever stops the loop before: a job's `loop.stop()`, or an exit that a task of a job has raised, or a
    callback, which asyncio lets through to here. In the task it is a failure like others, and whoever awaits that has it."""
    task = OwnTask(work, loop=loop)
    while True:
        try:
            return loop.run_until_complete(task)
        except (RuntimeError, SystemExit, KeyboardInterrupt) as stopped:
            if task.done() or loop.is_closed():
                raise
            log_safely(log.error, "%s the event loop, which is the worker's: it goes on", _who_stopped(stopped))


def _who_stopped(stopped: BaseException) -> str:
    if isinstance(stopped, RuntimeError):
        return "a job has stopped (loop.stop())"
    return f"what a job has started has raised {type(stopped).__name__} through"


def create_own(work: Coroutine[Any, Any, T]) -> OwnTask[T]:
    return OwnTask(work, loop=asyncio.get_running_loop())


class OwnTask(asyncio.Task[T]):
    """A task of the command. A job that cancels all tasks does not cancel it.

    Code outside of jobs can, for example a task group in the application's lifespan in which a task failed.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        if running.get() is not None and asyncio.current_task(self.get_loop()) is not None:
            log_safely(log.error, "a job has cancelled a task that is the worker's own: it goes on")
            return False
        return super().cancel(msg)
