"""`/api/v1`: the content of the pages as JSON, for people whom `authorize` admits. `/api/v1/openapi.json` describes the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskflow.app.app import default_app
from taskflow.app.explanation import Reason
from taskflow.app.job_display import IN_FULL, arguments_of, record_json, result_of
from taskflow.app.limits import limits
from taskflow.app.operate import FailureGroup, WorkerInfo, failure_groups, operate
from taskflow.app.schedules import ScheduleInfo, schedules
from taskflow.broker.admin import LimitInfo, QueueInfo
from taskflow.dashboard import pages
from taskflow.dashboard.rendering import root_of
from taskflow.dashboard.selection import FILTERS, filters_of, refusing, view_of_filters, whole
from taskflow.model.audit import ActionRecord
from taskflow.model.printable import json_text
from taskflow.model.record import Record


class Jobs(msgspec.Struct, frozen=True):
    """A page of jobs. `cursor` leads to the next page, and is None after the last one. `examined` is how many jobs were read to find those
    of this page."""

    jobs: list[dict[str, Any]]
    cursor: str | None
    examined: int


class Job(msgspec.Struct, frozen=True):
    """A job, with the reasons for its state, and its limits if it is waiting for one of them. `arguments` and `result` are None if they are
    hidden, not kept, or undecodable."""

    job: dict[str, Any]
    reasons: list[Reason]
    limits: list[LimitInfo]
    arguments: dict[str, Any] | None
    result: Any


class Runs(msgspec.Struct, frozen=True):
    """The runs of a job in a queue over the period of `seconds` that begins at `at`. They are counted by verdict and by deploy. `waits` and
    `times` have the median and the 95th percentile of the waits and run times, in seconds."""

    at: datetime
    seconds: int
    queue: str
    job: str
    runs: dict[str, int]
    waits: tuple[float, float]
    times: tuple[float, float]
    deploys: dict[str, int]


def _json(record: Record) -> dict[str, Any]:
    """Convert a record, without the bytes of unreadable fields, which may contain arguments and secrets."""
    unreadable = [{"column": each.column, "problem": each.problem} for each in record.unreadable]
    return record_json(record) | {"unreadable": unreadable}


async def _jobs(request: Request) -> Jobs:
    view, cursor = view_of_filters(filters_of(request.query_params)), request.query_params.get("cursor") or None
    limit = whole(request.query_params.get("limit"), 50, 1, 200)
    with refusing():
        page = await pages.call(lambda broker: broker.admin.page(view, cursor=cursor, limit=limit))
    return Jobs([_json(record) for record in page.records], page.cursor, page.examined)


async def _job(request: Request) -> Job:
    record, is_shown = await pages.record_of(request.path_params["id"]), pages.access_of(request).show_arguments
    bounds, (why, waits_for) = default_app().limits, await pages.why(record, datetime.now(UTC))
    arguments = arguments_of(record, bounds, IN_FULL)[0] if is_shown else None
    return Job(_json(record), why, waits_for, arguments, result_of(record, bounds, IN_FULL)[0] if is_shown else None)


async def _failures(request: Request) -> list[FailureGroup]:
    filters = {name: text for name, text in filters_of(request.query_params).items() if name in ("queue", "job", "tag")}
    view = view_of_filters(filters)
    deploy = request.query_params.get("deploy", "")
    return (await pages.call(lambda broker: failure_groups(broker, view, deploy=deploy))).groups


async def _history(request: Request) -> list[Runs]:
    periods = await operate.history(since=timedelta(hours=whole(request.query_params.get("hours"), 1, 1, 720)))
    return [
        Runs(each.at, each.seconds, *pair, of.runs, (of.wait_of(0.5), of.wait_of(0.95)), (of.time_of(0.5), of.time_of(0.95)), of.deploys)
        for each in periods
        for pair, of in each.measures.items()
    ]


# By path: the function that reads the content, the content's type, and the names of the query parameters.
RESOURCES: Final[Mapping[str, tuple[Callable[[Request], Awaitable[Any]], Any, tuple[str, ...]]]] = {
    "/queues": (lambda request: operate.queues(), list[QueueInfo], ()),
    "/workers": (lambda request: operate.workers(), list[WorkerInfo], ()),
    "/jobs": (_jobs, Jobs, (*FILTERS, "cursor", "limit")),
    "/jobs/{id}": (_job, Job, ()),
    "/failures": (_failures, list[FailureGroup], ("queue", "job", "tag", "deploy")),
    "/limits": (lambda request: limits.list(request.query_params.get("limit") or None), list[LimitInfo], ("limit",)),
    "/schedules": (lambda request: schedules.list(), list[ScheduleInfo], ()),
    "/history": (_history, list[Runs], ("hours",)),
    "/audit": (pages.actions_before, list[ActionRecord], ("before",)),
}


def api_routes(prefix: str) -> list[Route]:
    async def describe(request: Request) -> dict[str, Any]:
        return openapi(root_of(request) + prefix)

    def answering(read: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return Response(json_text(await read(request)), media_type="application/json")

        return answer

    reads = {path: read for path, (read, *_) in RESOURCES.items()} | {"/openapi.json": describe}
    return [Route(prefix + path, answering(read)) for path, read in reads.items()]


def openapi(server: str) -> dict[str, Any]:
    """Return an OpenAPI 3.1 description of the resources."""
    kinds = [kind for _, kind, _ in RESOURCES.values()]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths = {}
    for (path, (*_, query)), schema in zip(RESOURCES.items(), schemas, strict=True):
        names = [("id", "path")] * ("{id}" in path) + [(name, "query") for name in query]
        parameters = [{"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}} for name, place in names]
        content = {"application/json": {"schema": schema}}
        paths[path] = {"get": {"parameters": parameters, "responses": {"200": {"description": "the current state", "content": content}}}}
    info = {"title": "taskflow dashboard", "version": version("taskflow-jobs")}
    return {"openapi": "3.1.0", "info": info, "servers": [{"url": server}], "paths": paths, "components": {"schemas": components}}
