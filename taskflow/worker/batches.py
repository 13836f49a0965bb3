"""Groups the runs of batch jobs: one call of the job's function serves many runs, and each run gets a separate outcome."""

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
    """The runs served by one call. `call` is the lease that the executor gets for the call. `present` counts the runs that haven't
    received their outcomes yet, and `stopped` the runs that were stopped during the call."""

    def __init__(self, job: AnyJob, function: Callable[..., Any], first: HeldLease) -> None:
        self.job, self.function = job, function
        self.call = HeldLease(first.lease)
        self.context = contextvars.copy_context()
        self.runs: dict[asyncio.Future[Any], tuple[HeldLease, Any]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.present = self.stopped = 0


class Batches:
    """An executor's batches. Each batch occupies one slot of the worker, from its first waiting run until its call ends.

    `invoke` calls a function for a lease, as the executor does, and `limit` starts a run's time limit. While `waits` is False, a batch
    doesn't wait for further jobs: the call is made as soon as the available runs have begun.
    """

    def __init__(self, threads: ThreadPool | None, invoke: _Invoke, limit: Callable[[HeldLease], None], *, waits: bool) -> None:
        self._threads, self._invoke, self._limit, self.waits = threads, invoke, limit, waits
        self._gathering: dict[AnyJob, _Group] = {}
        self._groups = set[_Group]()

    @property
    def surplus(self) -> int:
        """The number of runs that need no slot because another run of the same batch occupies one."""
        return sum(max(0, group.present - 1) for group in self._groups)

    @property
    def wanted(self) -> int:
        """The number of jobs that the gathering batches still have room for."""
        return sum((0 if job.batch is None else job.batch.size) - len(group.runs) for job, group in self._gathering.items())

    def gathers(self, job: AnyJob | None) -> bool:
        return job in self._gathering

    def begin_all(self) -> None:
        """Begin the calls of all batches that are gathering runs."""
        for group in list(self._gathering.values()):
            self._begin(group)

    async def outcome(self, run: HeldLease, job: AnyJob, function: Callable[..., Any], item: Any) -> Any:
        """Add a run to its job's batch. Return the run's outcome, or raise its error. The call uses the first run's `function`."""
        assert job.batch is not None
        loop = asyncio.get_running_loop()
        group = self._gathering.get(job)
        if group is None:
            group = self._gathering[job] = _Group(job, function, run)
            self._groups.add(group)
            group.timer = loop.call_later(job.batch.seconds if self.waits else 0.0, self._begin, group)
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
        """Forget a batch whose runs have ended. If all of them were stopped while it was gathering, its function isn't called."""
        self._groups.discard(group)
        self._close(group)

    def _close(self, group: _Group) -> None:
        """Let no further runs join a batch."""
        if self._gathering.get(group.job) is group:
            del self._gathering[group.job]
        if group.timer is not None:
            group.timer.cancel()

    def _begin(self, group: _Group) -> None:
        """Start the call, and the time limits of its runs. Runs that expired while waiting get CancelledBeforeStart instead."""
        self._close(group)
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
            if future.done():  # the run was stopped
                continue
            if not isinstance(outcome, Failure):
                future.set_result(outcome)
            elif isinstance(outcome.error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(carried(outcome.error))

    async def _wait_out(self, group: _Group, task: asyncio.Task[None]) -> None:
        """Wait for the call to end, because it may still be working on the stopped run's job. Once every run is stopped, stop the call."""
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
