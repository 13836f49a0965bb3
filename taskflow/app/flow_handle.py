"""Defines the handle of a sent flow."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

from taskflow.app.app import App, default_app
from taskflow.app.bulk_actions import CHANGED, apply
from taskflow.app.flow_plan import Plan
from taskflow.app.flow_tree import flow_id_of, flow_of, to_retry
from taskflow.app.handle import JobHandle, Origin, seconds_to_wait
from taskflow.model.batch import Failure
from taskflow.model.errors import JobCancelled, JobFailed
from taskflow.model.ids import id_text, parse_id
from taskflow.model.record import Status

R_co = TypeVar("R_co", covariant=True)

AT_ONCE: Final = 500
"""The maximum number of jobs that a flow's handle waits for at once."""


class FlowHandle(Generic[R_co]):
    """A reference to a flow in the store, as `Flow.delay` returns it.

    `flow`  the flow as a whole, for example to cancel it
    """

    __slots__ = ("_ends", "_last", "flow")

    def __init__(self, app: App, plan: Plan, connection: object) -> None:
        origin = Origin.SENT if connection is None else Origin.TRANSACTION
        jobs = tuple(JobHandle[Any](app, call.envelope.id, call.job_type, origin=origin) for call in plan.calls)
        self.flow = SentFlow(app, plan.flow, jobs)
        self._last = plan.last
        self._ends = [jobs[number] for number in plan.last.sources]

    async def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait up to `timeout` (seconds or a timedelta) for the flow to end, and return its result. 0 checks once; None waits forever.

        The result is that of the last job or, if the flow ends in a group, the list of the group's results, in the order of the calls. If
        the group collects failures, the list has a `Failure` in place of each result that is missing.

        If the flow failed, raises the JobFailed or JobCancelled of the job that caused the failure, whose id is in `job_id`. Also raises
        the other errors of `JobHandle.result`.
        """
        seconds = None if timeout is None else seconds_to_wait(timeout)
        until = None if seconds is None else time.monotonic() + seconds
        values = list[Any]()
        for begin in range(0, len(self._ends), AT_ONCE):
            left = None if until is None else max(0.0, until - time.monotonic())
            portion = self._ends[begin : begin + AT_ONCE]
            outcomes = await asyncio.gather(*(handle.result(left) for handle in portion), return_exceptions=True)
            for handle, outcome in zip(portion, outcomes, strict=True):
                values.append(await self._value_of(handle, outcome))
        if not self._last.is_list:
            return values[0]  # type: ignore[no-any-return]
        return values if self._last.passes else []  # type: ignore[return-value]

    async def _value_of(self, handle: JobHandle[Any], outcome: Any) -> Any:
        if not isinstance(outcome, BaseException):
            return outcome
        if not isinstance(outcome, JobFailed | JobCancelled):
            raise outcome
        error = await handle._cause_of(outcome)
        if not self._last.collects:
            raise error
        return Failure(error)

    async def status(self) -> Status | None:
        """Return the status of the flow's last job; None if the store doesn't know a last job. If the flow ends in a group, return RUNNING
        until all last jobs have ended, then SUCCEEDED or, unless failures are collected, the status of the first that did not succeed."""
        found = await asyncio.gather(*(handle.status() for handle in self._ends))
        if len(found) == 1:
            return found[0]
        if not found or None in found:
            return None if found else Status.SUCCEEDED
        if not all(status is not None and status.is_ended for status in found):
            return Status.RUNNING
        return next((status for status in found if status is not Status.SUCCEEDED and not self._last.collects), Status.SUCCEEDED)

    def __repr__(self) -> str:
        return f"<FlowHandle {self.flow.id}>"


class SentFlow:
    """A flow in the store.

    `jobs`  the handles of its jobs, in flow order; empty for a flow obtained with `SentFlow.of`
    """

    __slots__ = ("_app", "_id", "jobs")

    def __init__(self, app: App, flow_id: bytes, jobs: tuple[JobHandle[Any], ...]) -> None:
        self._app = app
        self._id = flow_id
        self.jobs = jobs

    @staticmethod
    def of(flow_id: str) -> SentFlow:
        """Return the flow with this id, or the one with a job of this id. It may have been sent elsewhere. Raises InvalidJobId if the text
        is not an id."""
        return SentFlow(default_app(), parse_id(flow_id), ())

    @property
    def id(self) -> str:
        """The flow's id as text, for `taskflow flows ID`. It is not the id of a job."""
        return id_text(self._id)

    async def cancel(self) -> int:
        """Cancel all waiting jobs of the flow, and ask the running ones to stop. Return how many jobs had not ended. No job of the flow
        starts after this returns."""
        call = self._app.client().call_on_flow
        flow = self._id if self.jobs else await flow_id_of(call, self._id)
        return await call(lambda broker: broker.admin.cancel_flow(flow))

    async def retry(self) -> int:
        """Rerun the jobs that failed or were cancelled, with fresh attempts, and restore those that their failures cancelled. Jobs that
        succeeded don't run again. Return the number of retried jobs."""
        call = self._app.client().call_on_flow
        _, records = await flow_of(call, self._id)
        ids = to_retry(records)
        return (await apply(call, "retry", ids)).count(CHANGED)

    def __repr__(self) -> str:
        return f"<SentFlow {self.id}>"
