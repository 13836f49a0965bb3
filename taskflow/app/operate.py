"""Defines `operate`, which gives applications the command line's actions on jobs, queues and failures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec
from typing_extensions import Unpack

from taskflow.app.app import default_app
from taskflow.app.bulk_actions import (
    DEFAULTS as STATUSES_OF,
    PAGE,
    ActionName,
    ActionResult,
    JobSelection,
    amend_jobs,
    check_operator,
    check_view,
    count,
    foresee,
    pages,
    perform,
    recorded,
    view_of,
)
from taskflow.app.handle import JobHandle, info_of
from taskflow.app.job_info import JobInfo
from taskflow.app.job_type import JobType
from taskflow.broker.admin import EXAMINED, Admin, FailureGroupRecord, QueueInfo, View
from taskflow.broker.failure_parts import FailurePart, failure_groups_of
from taskflow.broker.paging import pages as all_pages
from taskflow.broker.protocol import Broker
from taskflow.model.clock import microseconds_of
from taskflow.model.envelope import check_job_name, check_queue
from taskflow.model.fingerprint import frame
from taskflow.model.ids import id_text, parse_id
from taskflow.model.measures import MeasuresRecord
from taskflow.model.printable import shown
from taskflow.model.record import Record, Status

MAX_GROUPS: Final = 100

MAX_READ: Final = 100_000
"""The maximum number of groups that are read to find those with jobs of a deploy."""

SAMPLES_AT_ONCE: Final = 10


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed jobs with the same cause.

    `id`       the fingerprint of their failures, as 16 hexadecimal digits. It stays the same from release to release
    `count`    how many of its jobs the store still keeps
    `first`    when the first of them failed
    `last`     when the last one failed
    `jobs`     the number of its jobs by job name, the most frequent first
    `deploys`  the number of its jobs by deploy (TASKFLOW_DEPLOY of the worker), the most frequent first
    `error`    the error of the job that failed last; empty if the store no longer keeps that job
    `frame`    the innermost frame of the application in that error's traceback, as "folder/file.py:function"
    `sample`   the id of the job that failed last
    """

    id: str
    count: int
    first: datetime
    last: datetime
    jobs: dict[str, int]
    deploys: dict[str, int]
    error: str
    frame: str
    sample: str


class Failures(NamedTuple):
    """Groups, the largest first. If not all failed jobs were read, `window` is the number of jobs that were read, otherwise None."""

    groups: list[FailureGroup]
    window: int | None = None


CountCauses = Callable[[str | None, str | None], Awaitable[list[FailureGroupRecord]]]
"""Counts the failed jobs of each cause in a queue (None for all) and with a job name (None for all)."""


async def failure_groups(
    broker: Broker, view: View, limit: int = MAX_GROUPS, deploy: str = "", *, others: bool = False, count: CountCauses | None = None
) -> Failures:
    """Return the largest groups of failed jobs in this view. With `deploy`, return the groups with the most jobs that failed on that
    deploy, followed by the remaining groups if `others` is True. `count` may return cached counts.

    The store counts all failed jobs if the view has at most a queue and a job name. Otherwise, at most `EXAMINED` jobs are read: those
    that failed last or, with a tag, the newest ones."""
    view, window, most = msgspec.structs.replace(view, statuses=(Status.FAILED,)), None, MAX_READ if deploy else limit
    if view == View(queue=view.queue, job=view.job, statuses=view.statuses):
        count = count or (lambda queue, job: broker.admin.failure_groups(queue=queue, job=job, limit=most))
        found = (await count(view.queue, view.job))[:most]
    else:
        page = await broker.admin.page(view, limit=EXAMINED)
        ends = [(record, microseconds_of(record.ended_at or record.created_at)) for record in page.records]
        found = failure_groups_of([FailurePart(record.cause, record.job, 1, at, at, record.id) for record, at in ends], most)
        window = None if page.cursor is None else page.examined
    if deploy:
        found = sorted((each for each in found if others or deploy in each.deploys), key=lambda each: -each.deploys.get(deploy, 0))[:limit]
    samples: dict[bytes, Record] = {}
    for first in range(0, len(found), SAMPLES_AT_ONCE):
        records = await broker.read([group.sample for group in found[first : first + SAMPLES_AT_ONCE]])
        samples |= {record.id: record for record in records if record is not None}
    return Failures([_shown(group, samples.get(group.sample)) for group in found], window)


async def group_ids(admin: Admin, view: View, group: str) -> list[bytes]:
    """Return the ids of the group's jobs in this view: newest first if the view has no conditions, otherwise in the order of its pages."""
    fingerprint = bytes.fromhex(group)
    if view == View():
        return sorted(await admin.failed_ids(fingerprint), reverse=True)
    found = all_pages(admin, msgspec.structs.replace(view, statuses=(Status.FAILED,)))
    return [record.id async for records in found for record in records if record.fingerprint == fingerprint]


def _shown(group: FailureGroupRecord, sample: Record | None) -> FailureGroup:
    """Convert a group's record. If its sample was dropped in the meantime, `sample` is None, and the group has no error and no frame."""
    error = None if sample is None else sample.last_error
    shared: dict[str, Any] = {name: getattr(group, name) for name in ("count", "first", "last", "jobs", "deploys")}
    return FailureGroup(
        id=group.fingerprint.hex(),
        error=(sample.reason if sample is not None else None) or "",
        frame="" if error is None else frame(error.traceback),
        sample=id_text(group.sample),
        **shared,
    )


class ActionOptions(JobSelection, total=False):
    """The arguments of `cancel`, `retry`, `run_now` and `purge`, which select jobs and say how to act; see `Operate`."""

    everything: bool
    dry_run: bool
    by: str | None
    reason: str


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A running worker, or one that was just lost.

    `name`         "host:pid"
    `queues`       the queues that it serves; empty means all
    `concurrency`  how many jobs it runs at once
    `running`      how many jobs it holds now, including those that wait for a free slot
    `busy`         how many of its slots are in use. A batch uses one
    `silent_for`   seconds since its last heartbeat
    `is_lost`      True if it was declared dead; its jobs will run elsewhere
    `jobs`         the names of the jobs that its code declares, aliases included; empty if there are more than 1,000
    `deploy`       the value of TASKFLOW_DEPLOY in its environment; empty if it isn't set
    `since`        when it registered, as an aware datetime in UTC
    """

    name: str
    queues: tuple[str, ...]
    concurrency: int
    running: int
    busy: int
    silent_for: float
    is_lost: bool
    jobs: tuple[str, ...] = ()
    deploy: str = ""
    since: datetime


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the selected jobs.

    `cursor`         where the next page begins, for `operate.page`, as text that is safe in a URL; None after the last page
    `examined`       how many jobs were read to find those of this page
    `stopped_early`  True if the page is not full because at most 800 jobs are read for a page, and at most 200 that are no longer
                     kept; more may match
    """

    jobs: list[JobInfo]
    cursor: str | None
    examined: int
    stopped_early: bool


class Operate:
    """Inspects jobs, queues and workers on this application's broker, and acts on them.

    All methods are async. Code without an event loop calls ``run_sync(operate.cancel(tag="import:42"))``. The methods raise
    BrokerUnavailable if the store does not answer in time, and TypeError, ValueError or InvalidJobId for an invalid argument.

    `cancel`, `retry`, `run_now` and `purge` act on all jobs that their arguments select (see `JobSelection`), in batches of 500. Each needs
    at least one argument, or ``everything=True``, so that an empty call cannot affect every job. With ``dry_run=True`` they change nothing.

    The audit log of the store records each action: `by` says who acts (default: the process's user and machine), and `reason` says why.
    An action that changes nothing is not recorded.
    """

    async def queues(self) -> list[QueueInfo]:
        """Return every queue that is paused or has ever had jobs, sorted by name."""
        found = await default_app().client().call(lambda broker: broker.admin.queues())
        counts = dict.fromkeys(Status, 0)
        return [msgspec.structs.replace(queue, counts=counts | queue.counts) for queue in found]

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers that are running or were just lost, sorted by name."""
        return [
            WorkerInfo(
                **{name: getattr(record.session, name) for name in ("name", "queues", "concurrency", "jobs", "deploy")},
                running=record.leases,
                busy=record.busy,
                silent_for=record.seconds_since_beat,
                is_lost=record.is_dying,
                since=record.registered_at,
            )
            for record in await default_app().client().call(lambda broker: broker.admin.workers())
        ]

    async def metrics(self) -> dict[str, dict[str, int]]:
        """Return how often each event has happened in each queue since the store was created, by queue and then by event."""
        return (await default_app().client().call(lambda broker: broker.admin.metrics())).totals

    async def history(self, *, since: datetime | timedelta = timedelta(hours=1), until: datetime | None = None) -> list[MeasuresRecord]:
        """Return how many runs ended and how long jobs waited and ran, by period: minutes for the last 3 hours, ten minutes for the last 2
        days, hours for the last 30 days. Workers record this with `configure(telemetry=[History()])`.

        `since`  the beginning, or how long ago it was (default: an hour)
        `until`  the end (default: now)

        Raises ValueError for a datetime without a time zone.
        """
        now = datetime.now(UTC)
        first = since if isinstance(since, datetime) else now - since
        last = now + timedelta(minutes=2) if until is None else until  # the store's clock may be ahead
        return await default_app().client().call(lambda broker: broker.admin.history(first, last))

    async def failures(
        self,
        *,
        queue: str | None = None,
        job: str | JobType[Any] | None = None,
        tag: str | None = None,
        ended_before: float | timedelta | None = None,
        deploy: str | None = None,
        limit: int = 100,
    ) -> list[FailureGroup]:
        """Return up to `limit` groups of failed jobs with the same cause, the largest first. With `deploy`, return only groups with jobs
        that failed on that deploy, those with the most such jobs first. The counts are exact, but with `tag` or `ended_before`, only the
        newest 800 failed jobs that match are counted."""
        _check_limit(limit)
        view = view_of("failures", {"queue": queue, "job": job, "tag": tag, "ended_before": ended_before})
        found = await default_app().client().call(lambda broker: failure_groups(broker, view, limit, deploy or ""))
        return found.groups

    async def jobs(self, **which: Unpack[JobSelection]) -> AsyncIterator[JobInfo]:
        """Yield the selected jobs, or all jobs: ``async for info in operate.jobs(tag="import:42")``.

        They are read in pages while the loop runs, one status after another. Held jobs come in order of arrival, scheduled ones by due
        time, ready ones queue by queue in the order in which they will run, and ended ones with the latest end first. With a tag, the
        newest comes first.
        """
        app, view = default_app(), view_of("jobs", which)
        async for records in pages(app.client().call, view):
            for record in records:
                yield info_of(app, record)

    async def page(self, *, cursor: str | None = None, limit: int = 100, **which: Unpack[JobSelection]) -> JobPage:
        """Return some of the selected jobs, at most `limit`. For the next page, pass this page's cursor and the same arguments."""
        _check_limit(limit)
        app, view = default_app(), view_of("page", which)
        page = await app.client().call(lambda broker: broker.admin.page(view, cursor=cursor, limit=limit))
        jobs = [info_of(app, record) for record in page.records]
        return JobPage(jobs=jobs, cursor=page.cursor, examined=page.examined, stopped_early=page.stopped_early)

    async def count(self, **which: Unpack[JobSelection]) -> int:
        """Count the selected jobs. This reads them all, unless only live statuses, and perhaps a queue, are given. `queues` has the numbers
        by status."""
        return await count(default_app().client().call, view_of("count", which))

    async def cancel(self, *ids: str | JobHandle[Any], **which: Unpack[ActionOptions]) -> ActionResult:
        """Cancel the jobs with these ids or handles, or the selected jobs, unless they have ended. Running jobs are asked to stop."""
        return await self._act("cancel", ids, which)

    async def retry(self, *ids: str | JobHandle[Any], **which: Unpack[ActionOptions]) -> ActionResult:
        """Rerun the failed jobs with these ids or handles, or the selected ones, with fresh attempts.
        Cancelled jobs are retried by their ids, or with ``status="cancelled"``."""
        return await self._act("retry", ids, which)

    async def run_now(self, *ids: str | JobHandle[Any], **which: Unpack[ActionOptions]) -> ActionResult:
        """Make the jobs with these ids or handles, or the selected ones, ready if they wait for their time or their next attempt. Jobs that
        wait for other jobs, for a running job with their key, or at a limit stay as they are, and paused queues stay paused."""
        return await self._act("run-now", ids, which)

    async def purge(self, *ids: str | JobHandle[Any], **which: Unpack[ActionOptions]) -> ActionResult:
        """Delete the ended jobs with these ids or handles, or the selected ones, with their results. Waiting jobs are deleted only with a
        `status` that includes them, such as "ready"; running jobs never are."""
        return await self._act("purge", ids, which)

    async def pause(
        self, queue: str | None = None, *, job: str | JobType[Any] | None = None, by: str | None = None, reason: str = ""
    ) -> None:
        """Stop starting jobs of a queue, or calls to a job in any queue, until `resume`. Running jobs continue. The queue need not exist
        yet. Workers learn of a job's pause immediately, or at their next heartbeat, within 7 s. At most 100 jobs can be paused."""
        await self._amend("pause", queue, job, by, reason)

    async def resume(
        self, queue: str | None = None, *, job: str | JobType[Any] | None = None, by: str | None = None, reason: str = ""
    ) -> None:
        """End a pause. Calls that it held back become ready again, in their old places."""
        await self._amend("resume", queue, job, by, reason)

    async def paused_jobs(self) -> list[str]:
        """Return the names of the paused jobs, sorted."""
        return await default_app().client().call(lambda broker: broker.admin.paused_jobs())

    async def _amend(
        self, action: Literal["pause", "resume"], queue: str | None, job: str | JobType[Any] | None, by: str | None, reason: str
    ) -> None:
        check_operator(by, reason)
        if (queue is None) == (job is None):
            raise TypeError(f"operate.{action}() takes a queue or job=: pass only one")
        if queue is None:
            assert job is not None
            names = [check_job_name(job)] if isinstance(job, str) else [job.name, *job.aliases]
            await amend_jobs(default_app().client().call, action, names, by=by, reason=reason)
            return
        name, call = check_queue(queue), default_app().client().call
        async with recorded(call, action, by=by, reason=reason, names=[name]) as doing:
            was_paused = any(queue.is_paused for queue in await call(lambda broker: broker.admin.queues()) if queue.name == name)
            await call(lambda broker: broker.admin.pause(name) if action == "pause" else broker.admin.resume(name))
            doing.affected = int(was_paused != (action == "pause"))

    async def _act(self, action: ActionName, ids: tuple[str | JobHandle[Any], ...], options: ActionOptions) -> ActionResult:
        by, reason, everything = options.get("by"), options.get("reason", ""), options.get("everything", False)
        check_operator(by, reason)
        which = {name: value for name, value in options.items() if name not in ("everything", "dry_run", "by", "reason")}
        method = action.replace("-", "_")
        call, view = default_app().client().call_for(action), view_of(method, cast(JobSelection, which))
        selects = view != View()
        if len([way for way in (ids, selects, everything) if way]) > 1:
            raise ValueError(f"operate.{method}() got more than one of ids, a selection and everything=True: pass only one")
        if not ids and not selects and not everything:
            raise ValueError(f"operate.{method}() needs to know which jobs: pass ids, a selection such as tag=, or everything=True")
        check_view(action, view)
        if not view.statuses:
            view = msgspec.structs.replace(view, statuses=tuple(sorted(STATUSES_OF[action])))
        distinct = list(dict.fromkeys(parse_id(each.id if isinstance(each, JobHandle) else each) for each in ids))
        result = ActionResult()
        if options.get("dry_run"):
            for first in range(0, len(distinct), PAGE):
                found = await call(lambda broker, first=first: broker.read(distinct[first : first + PAGE]))  # type: ignore[misc]
                result += ActionResult.of(foresee(action, record, by_id=True) for record in found)
            if not ids:
                async for records in pages(call, view):
                    result += ActionResult.of(foresee(action, record, by_id=False) for record in records)
            return result
        async for done in perform(call, action, distinct, view, by=by, reason=reason):
            result = done
        return result


operate: Final = Operate()


def _check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit={shown(limit)}: expected a whole number, at least 1")
