"""Gathers the runs of batch jobs: one call of their function serves many runs, each of which has an outcome."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from taskflow.app.job_type import AnyJob
from taskflow.model.batch import Failure
from taskflow.model.errors import WrongBatchResult
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.thread_pool import CancelledBeforeStart, ThreadPool, carried

_Invoke = Callable[[HeldLease, AnyJob, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


class _Group:
    """The runs that one call serves. `call` represents the call where the executor expects a lease. `present` counts the runs that haven't
    taken their outcomes yet, and `stopped` the ones among them that were asked to stop."""

    def __init__(self, job: AnyJob, function: Callable[..., Any], first: HeldLease) -> None:
        self.job, self.function = job, function
        self.call = HeldLease(first.lease)
        self.context = contextvars.copy_context()
        self.runs: dict[asyncio.Future[Any], tuple[HeldLease, Any]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.present = self.stopped = 0


class Batches:
    """The batches of an executor. A worker counts each as one slot, from the first run that waits for others to the end of the call.

    `invoke` calls a function, as the executor does for a lease, and `limit` begins the time limit of a run. If `waits` is False, calls are
    made as soon as the available runs have begun.
    """

    def __init__(self, threads: ThreadPool | None, invoke: _Invoke, limit: Callable[[HeldLease], None], *, waits: bool) -> None:
        self._threads, self._invoke, self._limit, self._waits = threads, invoke, limit, waits
        self._gathering: dict[AnyJob, _Group] = {}
        self._groups = set[_Group]()

    @property
    def surplus(self) -> int:
        """The number of runs that take no slot, because another run of their batch does."""
        return sum(max(0, group.present - 1) for group in self._groups)

    @property
    def wanted(self) -> int:
        """The number of jobs for which the batches being gathered have room."""
        return sum((0 if job.batch is None else job.batch.size) - len(group.runs) for job, group in self._gathering.items())

    def gathers(self, job: AnyJob | None) -> bool:
        return job in self._gathering

    def begin_all(self) -> None:
        """Make the calls for the gathered runs, because no more will come."""
        for group in list(self._gathering.values()):
            self._begin(group)

    async def outcome(self, run: HeldLease, job: AnyJob, function: Callable[..., Any], item: Any) -> Any:
        """Return the outcome of a run, or raise its error. The function of the first run of a batch is called."""
        assert job.batch is not None
        loop = asyncio.get_running_loop()
        group = self._gathering.get(job)
        if group is None:
            group = self._gathering[job] = _Group(job, function, run)
            self._groups.add(group)
            group.timer = loop.call_later(job.batch.seconds if self._waits else 0.0, self._begin, group)
        future = loop.create_future()
        group.runs[future] = run, item
        group.present += 1
        if len(group.runs) == job.batch.size:
            self._begin(group)
        try:
            return await future
        except asyncio.CancelledError:
            if group.task is None:
                del group.runs[future]
            else:
                await self._wait_out(group, group.task)
            raise
        finally:
            group.present -= 1
            if not group.present:
                self._forget(group)

    def _forget(self, group: _Group) -> None:
        """Forget a batch whose runs have ended. If they were stopped while it was gathered, there is no call."""
        self._groups.discard(group)
        if self._gathering.get(group.job) is group:
            del self._gathering[group.job]
            if group.timer is not None:
                group.timer.cancel()

    def _begin(self, group: _Group) -> None:
        """Call the function for the runs that have been gathered. Their time limits begin now."""
        if self._gathering.get(group.job) is group:
            del self._gathering[group.job]
        if group.timer is not None:
            group.timer.cancel()
        now = time.monotonic()
        for future, (run, _) in list(group.runs.items()):
            run.started = now
            if run.begins_by is not None and now >= run.begins_by:
                del group.runs[future]
                future.set_exception(CancelledBeforeStart())
            else:
                self._limit(run)
        if group.runs:
            group.task = asyncio.get_running_loop().create_task(self._call(group), context=group.context)

    async def _call(self, group: _Group) -> None:
        items = [item for _, item in group.runs.values()]
        outcomes: Sequence[Any]
        try:
            returned = await self._invoke(group.call, group.job, group.function, (items,), {})
            outcomes = _checked(returned, group.job.name, len(items))
        except BaseException as error:
            if group.call.in_thread is not None and self._threads is not None:
                self._threads.give_up(group.call.in_thread)
            outcomes = [Failure(error)] * len(items)
        for future, outcome in zip(group.runs, outcomes, strict=True):
            if future.done():  # its run was stopped
                continue
            if not isinstance(outcome, Failure):
                future.set_result(outcome)
            elif isinstance(outcome.error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(carried(outcome.error))

    async def _wait_out(self, group: _Group, task: asyncio.Task[None]) -> None:
        """Wait for the end of the call, because it may still work on the job of a run that was stopped. The last one that is stopped stops
        the call too."""
        group.stopped += 1
        if group.stopped == len(group.runs):
            if group.call.in_thread is None:
                task.cancel()
            elif self._threads is not None:
                self._threads.take_back(group.call.in_thread)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # this run is being cut off
            task.cancel()
            raise


def _checked(returned: Any, job: str, number: int) -> Sequence[Any]:
    if not isinstance(returned, list | tuple):
        raise WrongBatchResult(f"{job} returned {type(returned).__name__}: expected a list with one element for each of its {number} jobs")
    if len(returned) != number:
        raise WrongBatchResult(f"{job} returned {len(returned)} elements: expected one for each of its {number} jobs, in their order")
    return returned
