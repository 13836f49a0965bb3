"""The executor in a child process, which calls functions in the main thread and sends progress to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from taskflow.app.app import default_app
from taskflow.app.context import JobContext
from taskflow.app.job import Job
from taskflow.app.job_type import AnyJob
from taskflow.model.clock import Seams
from taskflow.model.errors import StopReason
from taskflow.model.verdict import Progress, Settlement
from taskflow.worker.children.main_thread import MainThreadCalls
from taskflow.worker.children.messages import Completing, Message, Reported
from taskflow.worker.executor import CANCELLED, LOST, TIMED_OUT, WINDING_DOWN, Executor
from taskflow.worker.lease_table import HeldLease

# Minimum seconds between two progress reports, because a job may report each of a million items.
PROGRESS_EVERY: Final = 0.05

Say = Callable[[Message], None]

_REASONS: Final[Mapping[str, StopReason]] = {CANCELLED: "cancelled", TIMED_OUT: "timeout", WINDING_DOWN: "shutdown", LOST: "lost"}


class ChildExecutor(Executor):
    """Runs jobs without middleware or timeouts; the worker applies both. What stops a run is raised in its function, in the main thread."""

    def __init__(self, calls: MainThreadCalls, say: Say) -> None:
        super().__init__(default_app(), middleware=(), threads=None, seams=Seams())
        self._calls = calls
        self._say = say
        self._loop = asyncio.get_running_loop()

    def use_state(self, state: Any) -> None:
        """Make this the value of `ctx.state`."""
        self._state = state

    async def run(self, holding: HeldLease) -> Settlement:
        reports = _ProgressReports(self._say, holding)
        holding.on_report = reports.send_soon
        try:
            return await super().run(holding)
        finally:
            reports.end()

    async def _invoke(self, holding: HeldLease, job: AnyJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(job, Job):
            return await self._calls.run_async(partial(job.function, *args, **kwargs))
        return await self._calls.run(partial(job.function, *args, **kwargs))

    def _stop(self, holding: HeldLease, context: JobContext, task: asyncio.Task[Any] | None) -> None:
        context.cancelled.set()
        self._calls.stop(_REASONS[holding.why_stopped or CANCELLED])

    def _end_at_timeout(self, holding: HeldLease) -> None:
        """Leave it to the worker."""

    def _complete_with(self, holding: HeldLease, connection: object, result: bytes) -> Awaitable[None]:
        self._loop.call_soon_threadsafe(self._say, Completing())
        return super()._complete_with(holding, connection, result)


class _ProgressReports:
    """Sends the latest progress of one run to the worker, at most once every `PROGRESS_EVERY` seconds."""

    def __init__(self, say: Say, holding: HeldLease) -> None:
        self._say = say
        self._holding = holding
        self._loop = asyncio.get_running_loop()
        self._is_under_way = False
        self._said: Progress | None = None
        self._said_at = 0.0
        self._has_ended = False

    def send_soon(self) -> None:
        """Send the progress once `PROGRESS_EVERY` seconds have passed since the last time. May be called from any thread."""
        if not self._is_under_way and not self._has_ended:
            self._is_under_way = True
            self._loop.call_soon_threadsafe(self._wait)

    def end(self) -> None:
        """Send the latest report now, and ignore later ones."""
        self._send()
        self._has_ended = True

    def _wait(self) -> None:
        self._loop.call_at(self._said_at + PROGRESS_EVERY, self._send)

    def _send(self) -> None:
        self._is_under_way = False  # assigned first, so that a report from now on sends itself
        latest = self._holding.progress
        if latest is not None and latest is not self._said and not self._has_ended:
            self._said, self._said_at = latest, self._loop.time()
            self._say(Reported(latest.fraction, latest.note))
