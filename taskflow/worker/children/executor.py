"""The executor in a child process, which calls functions in the main thread and sends progress to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from taskflow.app.app import default_app
from taskflow.app.job import Job
from taskflow.app.job_type import AnyJob
from taskflow.model.progress import Progress
from taskflow.model.seams import Seams
from taskflow.model.verdict import Settlement
from taskflow.worker.children.calls import MainThreadCalls
from taskflow.worker.children.wire import Message, Reported
from taskflow.worker.executor import Executor
from taskflow.worker.lease_table import HeldLease

# Minimum seconds between two progress reports, because a job may report each of a million items.
PACE: Final = 0.05

Say = Callable[[Message], None]


class ChildExecutor(Executor):
    """Runs jobs without middleware or timeouts; the worker applies both."""

    def __init__(self, calls: MainThreadCalls, say: Say, state: Any) -> None:
        super().__init__(default_app().registry, middleware=(), threads=None, seams=Seams(), state=state)
        self._calls = calls
        self._say = say

    async def run(self, holding: HeldLease) -> Settlement:
        self._progress = _Paced(self._say)
        try:
            return await super().run(holding)
        finally:
            self._progress.end()

    async def _invoke(self, holding: HeldLease, job: AnyJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(job, Job):
            return await self._calls.run_async(partial(job.function, *args, **kwargs))
        return await self._calls.run(partial(job.function, *args, **kwargs))

    def _report_to(self, holding: HeldLease) -> Callable[[Progress], None]:
        return self._progress


class _Paced:
    """Sends the latest progress of one run to the worker, at most once every `PACE` seconds. May be called from any thread."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._latest: Progress | None = None
        self._is_under_way = False
        self._said_at = 0.0
        self._has_ended = False

    def __call__(self, progress: Progress) -> None:
        self._latest = progress
        if not self._is_under_way and not self._has_ended:
            self._is_under_way = True
            self._loop.call_soon_threadsafe(self._wait)

    def end(self) -> None:
        """Send the latest report now, and ignore later ones."""
        self._tell()
        self._has_ended = True

    def _wait(self) -> None:
        self._loop.call_at(self._said_at + PACE, self._tell)

    def _tell(self) -> None:
        self._is_under_way = False  # assigned first, so that a report from now on sends itself
        latest, self._latest = self._latest, None
        if latest is not None and not self._has_ended:
            self._said_at = self._loop.time()
            self._say(Reported(latest.fraction, latest.note))
