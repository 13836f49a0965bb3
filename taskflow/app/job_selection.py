"""The selection of jobs by arguments, as `operate` takes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypedDict

from taskflow.app.bulk_actions import check_error, header_of
from taskflow.app.job_type import AnyJob, JobType
from taskflow.app.option_checks import seconds_of
from taskflow.broker.console import View
from taskflow.model.envelope import check_job_name, check_queue
from taskflow.model.job_schema import check_tag
from taskflow.model.printable import shown
from taskflow.model.record import Status
from taskflow.model.suggestions import nearest


class JobSelection(TypedDict, total=False):
    """Which jobs: those for which all of these hold. None means "not given".

    `tag`           they have this tag
    `queue`         they are in this queue
    `job`           they call this job, given by its name or as the job itself
    `status`        they have this status, or one of these: "failed", `Status.FAILED`, ("failed", "cancelled")
    `error`         their last error, or the reason of their end, contains this text, in small or capital letters
    `header`        they have this header, "name", or the header with this value, "name=value"
    `created_before`, `ended_before`  they were sent, or have ended, at least so many seconds ago, or such a timedelta
    `poison`        they failed because their workers were lost again and again
    """

    tag: str | None
    queue: str | None
    job: str | JobType[Any] | None
    status: str | Iterable[str] | None
    error: str | None
    header: str | None
    created_before: float | timedelta | None
    ended_before: float | timedelta | None
    poison: bool | None


def view_of(method: str, which: JobSelection) -> View:
    """Return the view of the jobs that the arguments of `operate`'s method select. Raises TypeError or ValueError, naming the argument."""
    for name in which:
        if name not in JobSelection.__annotations__:
            near = nearest(name, JobSelection.__annotations__)
            hint = f"; did you mean {near}=?" if near else ""
            raise TypeError(f"operate.{method}() got an unexpected argument {name}={hint}")
    tag, queue = which.get("tag"), which.get("queue")
    error, header = which.get("error"), which.get("header")
    created_before, ended_before = which.get("created_before"), which.get("ended_before")
    return View(
        tag=None if tag is None else check_tag(_text("tag", tag)),
        queue=None if queue is None else check_queue(_text("queue", queue)),
        job=_job_name(which.get("job")),
        statuses=_statuses(which.get("status")),
        error=None if error is None else check_error(_text("error", error)),
        header=None if header is None else header_of(_text("header", header)),
        created_before=None if created_before is None else seconds_of("created_before", created_before),
        ended_before=None if ended_before is None else seconds_of("ended_before", ended_before),
        poison=_flag("poison", which.get("poison")),
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)}: expected a str")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | None):
        raise TypeError(f"{name}={shown(value)}: expected True or False")
    return bool(value)


def _job_name(job: str | AnyJob | None) -> str | None:
    if job is None or isinstance(job, JobType):
        return None if job is None else job.name
    return check_job_name(_text("job", job))


def _statuses(given: str | Iterable[str] | None) -> tuple[Status, ...]:
    """Return statuses, which may be given by their names in any case."""
    if given is None:
        return ()
    if not isinstance(given, Iterable):
        raise TypeError(f"status={shown(given)}: expected a status, or several")
    statuses = tuple(sorted({_status(each) for each in ([given] if isinstance(given, str) else given)}))
    if not statuses:
        raise ValueError("status= is empty: leave it out, or give a status")
    return statuses


def _status(given: str) -> Status:
    try:
        return Status(given.lower())
    except (ValueError, AttributeError):
        raise ValueError(f"status={shown(given)}: expected one of {', '.join(Status)}") from None
