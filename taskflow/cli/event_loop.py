"""Runs the event loop of a worker's process, and restarts it if a job stops it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from taskflow.app.context import running
from taskflow.model.printable import log_safely

log: Final = logging.getLogger("taskflow.worker")

T = TypeVar("T")


def run_through(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run the loop until `work` ends, even if a job stops the loop before that.

    A job may call `loop.stop()`. It may also raise SystemExit or KeyboardInterrupt in a task or callback, and
    asyncio lets these escape from the loop. For code that awaits such a task, this is still an ordinary failure.
    """
    task = OwnTask(work, loop=loop)
    while True:
        try:
            return loop.run_until_complete(task)
        except (RuntimeError, SystemExit, KeyboardInterrupt) as stopped:
            if task.done() or loop.is_closed():
                raise
            log_safely(log.error, "%s the worker's event loop; restarting it", _who_stopped(stopped))


def _who_stopped(stopped: BaseException) -> str:
    if isinstance(stopped, RuntimeError):
        return "a job has stopped (loop.stop())"
    return f"a task started by a job has raised {type(stopped).__name__} through"


def create_own(work: Coroutine[Any, Any, T]) -> OwnTask[T]:
    return OwnTask(work, loop=asyncio.get_running_loop())


class OwnTask(asyncio.Task[T]):
    """A task that belongs to the command. Jobs cannot cancel it, even by cancelling all tasks.

    Code outside jobs can cancel it, for example a task group in the application's lifespan when one of its tasks has failed.
    """

    _told_of = ""

    def cancel(self, msg: Any | None = None) -> bool:
        context = running.get()
        if context is not None and asyncio.current_task(self.get_loop()) is not None:
            if context.job_id != self._told_of:  # a job may try in a loop
                self._told_of = context.job_id
                log_safely(log.error, "a job tried to cancel a task of the worker; the task continues")
            return False
        return super().cancel(msg)
