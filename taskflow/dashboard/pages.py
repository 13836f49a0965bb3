"""The read-only pages. Each reads a bounded number of jobs, whatever the store holds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from taskflow.app.app import default_app
from taskflow.app.bulk_actions import DEFAULTS, POSSIBLE, ActionName, CallBrokerOnce
from taskflow.app.explanation import Reason, facts_of, own_facts_of, reasons, unknown_jobs
from taskflow.app.flow_tree import TreeLine, flow_records, summary_of, tree_of
from taskflow.app.job_display import AT_A_GLANCE, arguments_of, detail, record_json, result_of
from taskflow.app.limits import limits
from taskflow.app.operate import MAX_READ, Failures, WorkerInfo, failure_groups, group_ids, operate
from taskflow.app.schedules import schedules
from taskflow.broker.admin import FailureGroupRecord, LimitInfo, Page, QueueInfo, View
from taskflow.broker.protocol import Broker
from taskflow.dashboard import calendar, charts
from taskflow.dashboard.guard import Access
from taskflow.dashboard.memo import remembered, seen
from taskflow.dashboard.rendering import MAX_ROWS, redirect, render
from taskflow.dashboard.selection import FILTERS, filters_of, refusing, view_of_filters, whole
from taskflow.model.audit import ActionRecord
from taskflow.model.ids import id_text, parse_id
from taskflow.model.measures import Measure, Measures, MeasuresRecord, add_up
from taskflow.model.record import ENDED, LIVE, Moment, Record, Status, timeline, waits_at_limit
from taskflow.model.timetable import zone_of

T = TypeVar("T")

AT_ONCE: Final = 50  # maximum number of jobs, causes or actions on a page
GROUPS_AT_A_GLANCE: Final = 6
MAX_POSITIONS: Final = 100  # maximum number of jobs that are counted ahead of a ready job
MAX_ERRORS: Final = 10  # maximum number of errors shown for one job, the newest first
NO_ID: Final = "This is not a whole id, which has 36 characters. Click a short id in the list to select the whole one, and copy it."
FIRST_MOMENTS, LAST_MOMENTS = 5, 25
MAX_NAMES: Final = 100  # maximum number of names that a filter suggests
PORTIONS: Final = (
    (timedelta(days=2), timedelta(hours=12)),
    (timedelta(hours=3), timedelta(hours=2)),
    (timedelta(), timedelta(minutes=10)),
)
"""Pairs of an age and a span: history older than the age is read in portions of that span, because older periods are longer."""
LABELS: Final[dict[ActionName, str]] = {"retry": "Retry", "run-now": "Run now", "cancel": "Cancel", "purge": "Discard"}


async def call(operation: Callable[[Broker], Awaitable[T]]) -> T:
    return await default_app().client().call(operation)


def totals_of(queues: list[QueueInfo], queue: str | None = None) -> dict[Status, int]:
    """Return the number of jobs by status, in all queues or in one."""
    return {status: sum(each.counts.get(status, 0) for each in queues if queue in (None, each.name)) for status in Status}


async def groups_of(view: View, most: int = AT_ONCE, deploy: str = "", *, others: bool = False) -> Failures:
    async def read() -> Failures:
        return await call(lambda broker: failure_groups(broker, view, most, deploy, others=others, count=causes_of))

    return await remembered(("failures", view, most, deploy, others), read, keep=20.0)


async def causes_of(queue: str | None, job: str | None) -> list[FailureGroupRecord]:
    """Count the failed jobs of each cause. Pages that are made within a few seconds share the counts."""
    given: dict[str, Any] = {"queue": queue, "job": job, "limit": MAX_READ}
    return await remembered(("causes", queue, job), lambda: call(lambda broker: broker.admin.failure_groups(**given)), keep=5.0)


async def history_of(back: timedelta, queue: str | None = None) -> list[MeasuresRecord]:
    """Read the history of all queues or of one in portions: unpacking 30 days at once would stop the event loop for half a second."""
    now, found = datetime.now(UTC), dict[tuple[datetime, int], MeasuresRecord]()
    while back > timedelta():
        portion = next(min(portion, back - age) for age, portion in PORTIONS if back > age)
        until = now - (back - portion) if back > portion else None
        for each in await operate.history(since=now - back, until=until):
            measures = {pair: measure for pair, measure in each.measures.items() if queue in (None, pair[0])}
            found[each.at, each.seconds] = MeasuresRecord(at=each.at, seconds=each.seconds, measures=measures)
        back -= portion
    return [found[period] for period in sorted(found)]


async def overview(request: Request) -> Response:
    async def rate() -> Markup | None:
        history = await history_of(timedelta(hours=1))
        title = "Runs per minute in the last hour"
        return charts.rate(await charts.buckets(history, timedelta(hours=1)), title) if history else None

    queues, workers, paused_jobs, chart = await asyncio.gather(
        seen(request, operate.queues),
        seen(request, operate.workers),
        seen(request, operate.paused_jobs),
        remembered("rate", rate, keep=15.0),
    )
    known = [worker.jobs for worker in workers if not worker.is_lost]
    deploy = newest_deploy(workers)
    found, unknown = await asyncio.gather(
        groups_of(View(), GROUPS_AT_A_GLANCE, deploy, others=True),
        remembered("unknown", lambda: call(lambda broker: unknown_jobs(broker.admin, queues, known)), keep=5.0),
    )
    return await render(
        request,
        "overview.html",
        "Overview",
        queues=sorted(queues, key=lambda queue: -sum(queue.counts[status] for status in LIVE)),
        counts=totals_of(queues),
        untaken={each.name for each in queues if each.counts[Status.READY] and not _takers(workers, each.name)},
        workers=workers,
        paused_jobs=paused_jobs,
        unknown=unknown,
        groups=found.groups,
        deploy=deploy,
        chart=chart,
    )


def newest_deploy(workers: Sequence[WorkerInfo]) -> str:
    """Return the deploy that started last, judged by the oldest running worker of each deploy; an empty string if none is known."""
    running = sorted((worker for worker in workers if worker.deploy and not worker.is_lost), key=lambda worker: worker.since)
    return ["", *dict.fromkeys(worker.deploy for worker in running)][-1]


async def jobs(request: Request) -> Response:
    problem, job_id = "", request.query_params.get("id", "").strip()
    if job_id:
        try:
            return redirect(request, f"/jobs/{id_text(parse_id(job_id))}")
        except ValueError:
            problem = NO_ID
    group, cursor = request.query_params.get("group", "").strip(), request.query_params.get("cursor") or None
    filters = {"status": "failed"} if group else filters_of(request.query_params)
    view = view_of_filters(filters)
    with refusing():
        listed = _of_cause(group, cursor) if group else call(lambda broker: broker.admin.page(view, cursor=cursor, limit=AT_ONCE))
        page, queues, workers = await asyncio.gather(listed, seen(request, operate.queues), seen(request, operate.workers))
    [status] = view.statuses or (None,)
    actions = {name: LABELS[name] for name in LABELS if (DEFAULTS[name] if status is None else {status}) & POSSIBLE[name]}
    return await render(
        request,
        "jobs.html",
        "Jobs",
        400 if problem else 200,
        group=group,
        problem=problem,
        job_id=job_id,
        filters=dict.fromkeys(FILTERS, "") | filters,
        known={
            "queue": [queue.name for queue in queues][:MAX_NAMES],
            "job": sorted({name for worker in workers for name in worker.jobs} | {record.job for record in page.records})[:MAX_NAMES],
        },
        is_filtered=bool(filters),
        is_ended=status in ENDED,
        rows=[(record, id_text(record.id), detail(record)) for record in page.records],
        page=page,
        is_first=cursor is None,
        totals=totals_of(queues, view.queue) if set(filters) <= {"status", "queue"} else None,
        actions=actions,
    )


async def _of_cause(group: str, cursor: str | None) -> Page:
    """Return a page of the jobs that failed for the same cause, newest first."""
    start = whole(cursor, 0, 0, 1_000_000)
    ids = await call(lambda broker: group_ids(broker.admin, View(), group))
    records = await call(lambda broker: broker.read(ids[start : start + AT_ONCE]))
    following = str(start + AT_ONCE) if start + AT_ONCE < len(ids) else None
    return Page(records=[each for each in records if each], cursor=following, examined=len(records), stopped_early=False)


async def job(request: Request) -> Response:
    record = await record_of(request.path_params["id"])
    now, limits, access = datetime.now(UTC), default_app().limits, access_of(request)
    arguments, problem = arguments_of(record, limits, AT_A_GLANCE) if access.show_arguments else (None, None)
    result, result_problem = result_of(record, limits, AT_A_GLANCE) if access.show_arguments else (None, None)
    (tree, flow_summary), (found, its_limits) = await asyncio.gather(_flow_of(record), why(record, now))
    return await render(
        request,
        "job.html",
        record.job,
        record=record,
        tree=tree,
        flow_summary=flow_summary,
        trace=trace_of(record.headers),
        fields=record_json(record),
        why=found,
        limits=its_limits,
        moments=_moments(record, now),
        runs=charts.runs(record, now),
        is_paused=(is_paused := any(f"queue {record.queue} is paused" in each.text for each in found)),
        pause=await _pause_of(record.queue) if is_paused else None,
        errors=record.errors[: -MAX_ERRORS - 1 : -1],
        arguments=arguments,
        problem=problem,
        result=result,
        result_problem=result_problem,
        actions={name: label for name, label in LABELS.items() if _applies(name, record)},
    )


async def _pause_of(queue: str) -> ActionRecord | None:
    """Return the action that paused the queue, or None if it is not among the newest actions."""
    found = await call(lambda broker: broker.admin.actions(limit=AT_ONCE))
    return next((record for record in found if record.action.kind == "pause" and queue in record.action.names), None)


def _applies(action: ActionName, record: Record) -> bool:
    if action == "run-now" and waits_at_limit(record):  # the action "Run now" skips no limit
        return False
    return record.status in POSSIBLE[action] and (action != "purge" or record.status in ENDED)


async def _flow_of(record: Record) -> tuple[list[TreeLine], str]:
    """Return the tree of the job's flow, and a summary of the flow's jobs by status. Both are empty for a job outside a flow."""
    member = record.member
    if member is None:
        return [], ""

    async def read() -> tuple[list[TreeLine], str]:
        records = await call(lambda broker: flow_records(CallBrokerOnce(broker), member.flow))
        return [*islice(tree_of(records), MAX_ROWS)], summary_of(records)

    return await remembered(("flow", member.flow), read, keep=5.0)


def trace_of(headers: Mapping[str, str]) -> str:
    """Return the id of the trace that a job belongs to, from the headers of OpenTelemetry or Sentry, or an empty string."""
    found = _TRACE.match(headers.get("traceparent") or headers.get("sentry-trace") or "")
    return found[1] if found else ""


_TRACE: Final = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})-", re.ASCII)


def access_of(request: Request) -> Access:
    access: Access = request.scope["taskflow.access"]
    return access


async def why(record: Record, now: datetime) -> tuple[list[Reason], list[LimitInfo]]:
    """Return the reasons for the job's state, and its limits if it is waiting for one of them."""
    facts, own = await asyncio.gather(
        call(lambda broker: facts_of(broker.admin, record, now, sample_time=0, max_positions=MAX_POSITIONS)),
        call(lambda broker: own_facts_of(broker, record)),
    )
    return reasons(record, facts, own), list(own.limits)


async def record_of(text: str) -> Record:
    """Return the record of the job with this id. Raises HTTPException if there is none."""
    try:
        job_id = parse_id(text)
    except ValueError as error:
        raise HTTPException(404, "This is not the id of a job.") from error
    record = await default_app().client().read(job_id)
    if record is None:
        raise HTTPException(404, f"Job {text} is unknown, or no longer kept.")
    return record


def _moments(record: Record, now: datetime) -> list[tuple[Moment, float | None]]:
    """Return the moments of the job's timeline, each with the seconds since the previous one. The middle of a long timeline is left out."""
    found = timeline(record, now)
    timed = [(moment, None if not place else (moment.at - found[place - 1].at).total_seconds()) for place, moment in enumerate(found)]
    return timed if len(timed) <= FIRST_MOMENTS + LAST_MOMENTS else [*timed[:FIRST_MOMENTS], *timed[-LAST_MOMENTS:]]


async def failures(request: Request) -> Response:
    given, deploy = filters_of(request.query_params), request.query_params.get("deploy", "").strip()
    filters = {name: text for name, text in given.items() if name in ("queue", "job", "tag")}
    view, shown = view_of_filters(filters), dict.fromkeys(("queue", "job", "tag"), "") | filters
    found, workers = await asyncio.gather(groups_of(view, deploy=deploy), seen(request, operate.workers))
    return await render(
        request,
        "failures.html",
        "Failures",
        filters=shown,
        is_filtered=bool(filters),
        deploy=deploy,
        newest=newest_deploy(workers),
        groups=found.groups,
        window=found.window,
        at_once=AT_ONCE,
    )


def _takers(workers: list[WorkerInfo], queue: str) -> list[WorkerInfo]:
    return [worker for worker in workers if not worker.is_lost and (not worker.queues or queue in worker.queues)]


async def queue(request: Request) -> Response:
    name = request.path_params["name"]

    queues, workers, totals, drawn, found_limits = await asyncio.gather(
        seen(request, operate.queues),
        seen(request, operate.workers),
        seen(request, operate.metrics),
        remembered(("last day", name), lambda: _last_day(name), keep=60.0),
        remembered("limits", limits.list),
    )
    found = next((queue for queue in queues if queue.name == name), None)
    if found is None:
        raise HTTPException(404, f"Queue {name} has never had a job.")
    return await render(
        request,
        "queue.html",
        f"Queue {name}",
        queue=found,
        workers=_takers(workers, name),
        events=totals.get(name, {}),
        limits=[limit for limit in found_limits if any(job.queue == name for job in (*limit.holders, *limit.next))][:MAX_ROWS],
        **drawn,
    )


async def _last_day(queue: str) -> dict[str, Any]:
    """Add up a queue's measures by job, and draw its waits and run times. If a deploy began, draw those before and since it separately."""
    by_job, periods = Measures(), list[Measure]()
    for each in await history_of(timedelta(days=1), queue):
        await asyncio.sleep(0)  # see `charts.buckets`
        add_up(by_job, each.measures)
        periods.append(charts.merged(each.measures.values()))
    place, deploy = (charts.deploys(periods) or [(0, "")])[-1]
    parts = {f"before {deploy}": charts.merged(periods[:place])} if place else {}
    parts[f"since {deploy}" if deploy else ""] = charts.merged(periods[place:])
    return {
        "measures": sorted(((job, of) for (_, job), of in by_job.items()), key=lambda pair: -pair[1].number)[:MAX_ROWS],
        "waits": charts.histogram({part: measure.waits for part, measure in parts.items()}, "Waits in the last day"),
        "times": charts.histogram({part: measure.times for part, measure in parts.items()}, "Run times in the last day"),
    }


async def workers(request: Request) -> Response:
    return await render(request, "workers.html", "Workers", workers=await seen(request, operate.workers))


async def schedule_list(request: Request) -> Response:
    return await render(request, "schedules.html", "Schedules", schedules=await schedules.list())


async def schedule_calendar(request: Request) -> Response:
    given, now = request.query_params.get("tz", "").strip(), datetime.now(UTC)
    with refusing():
        zone = zone_of(given or "UTC")
        today = now.astimezone(zone).date()
        first = date.fromisoformat(request.query_params.get("from") or today.isoformat())
    first = min(max(first, today), today + calendar.MAX_AHEAD)
    days = calendar.days_from(first, zone)
    records, start = await call(lambda broker: broker.admin.schedules(None)), whole(request.query_params.get("start"), 0, 0, 1_000_000)
    part = records[start : start + calendar.MAX_ROWS]
    return await render(
        request,
        "calendar.html",
        "Calendar of schedules",
        days=days,
        rows=await run_in_threadpool(calendar.rows_of, default_app(), part, days, zone, now),
        start=start,
        number_of_schedules=len(records),
        given=given,
        is_first=first == today,
        before=max(today, first - timedelta(days=calendar.DAYS)).isoformat(),
        after=(first + timedelta(days=calendar.DAYS)).isoformat(),
        at_once=calendar.MAX_TIMES,
    )


SPANS: Final = {1: "1 hour", 6: "6 hours", 24: "1 day", 168: "7 days", 720: "30 days"}


async def chart_page(request: Request) -> Response:
    hours = whole(request.query_params.get("hours"), 1, 1, 720)
    filters = {name: request.query_params.get(name, "").strip() for name in ("queue", "job")}

    # A point in a 30-day chart covers half a day, so the chart may be minutes old.
    keep = min(300.0, 15.0 * hours)
    values = await remembered(("charts", hours, *filters.values()), lambda: _drawn(hours, **filters), keep=keep)
    return await render(request, "charts.html", "Charts", hours=hours, spans=SPANS, filters=filters, **values)


async def _drawn(hours: int, queue: str, job: str) -> dict[str, Any]:
    history = await history_of(timedelta(hours=hours))
    found = await charts.buckets(history, timedelta(hours=hours), queue=queue, job=job)
    drawn: dict[str, Any] = {}
    if any(bucket.measure.number for bucket in found):
        drawn = {
            "rate": charts.rate(found, "Runs per minute"),
            "waits": charts.quantiles(found, "Wait, median and 95th percentile", lambda measure, share: measure.wait_of(share)),
            "times": charts.quantiles(found, "Run time, median and 95th percentile", lambda measure, share: measure.time_of(share)),
        }
    names = sorted({pair for each in history for pair in each.measures})
    return {
        "charts": drawn,
        "buckets": found,
        "has_history": bool(history),
        "queues": sorted({its_queue for its_queue, _ in names})[:MAX_ROWS],
        "jobs": sorted({its_job for its_queue, its_job in names if queue in ("", its_queue)})[:MAX_ROWS],
    }


async def actions_before(request: Request) -> list[ActionRecord]:
    before = whole(request.query_params.get("before"), 0, 0, 1 << 62) or None
    return await call(lambda broker: broker.admin.actions(before=before, limit=AT_ONCE))


async def audit(request: Request) -> Response:
    records, is_first = await actions_before(request), not request.query_params.get("before")
    is_full = len(records) == AT_ONCE
    return await render(request, "audit.html", "Audit", LABELS=LABELS, records=records, is_first=is_first, is_full=is_full)
