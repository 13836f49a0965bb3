"""Groups failed jobs by their cause, for `operate` and for the command line."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from taskflow.broker.console import EXAMINED, Console, FailureGroupRecord, View
from taskflow.broker.failure_parts import FailurePart, failure_groups_of
from taskflow.broker.paging import pages
from taskflow.broker.protocol import Broker
from taskflow.model.clock import microseconds_of
from taskflow.model.fingerprint import frame
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status

MAX_GROUPS: Final = 100

SAMPLES_AT_ONCE: Final = 20


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed jobs with the same cause.

    `id`       the fingerprint of their failures, as 16 hexadecimal digits. It stays the same from release to release
    `count`    how many jobs the store keeps of it
    `first`    when the first of them failed
    `last`     when the last one failed
    `jobs`     how many there are of each job name, the most frequent first
    `deploys`  how many there are of each deploy (TASKFLOW_DEPLOY of the worker), the most frequent first
    `error`    the error of the last one
    `frame`    the innermost frame of the application in its traceback, as "folder/file.py:function"
    `sample`   the id of the last one
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
    """Groups, the largest first. `window` is the number of failed jobs that were read if not all were, otherwise None."""

    groups: list[FailureGroup]
    window: int | None = None


async def failure_groups(broker: Broker, view: View, limit: int = MAX_GROUPS) -> Failures:
    """Return the largest groups of the failed jobs in this view.

    Stores count all failed jobs, also those of a queue or a job name. With any other condition no more than `EXAMINED` are read: those
    that failed last, or the newest with a tag.
    """
    view, window = msgspec.structs.replace(view, statuses=(Status.FAILED,)), None
    if view == View(queue=view.queue, job=view.job, statuses=view.statuses):
        found = await broker.console.failure_groups(queue=view.queue, job=view.job, limit=limit)
    else:
        page = await broker.console.page(view, limit=EXAMINED)
        ends = [(record, microseconds_of(record.ended_at or record.created_at)) for record in page.records]
        found = failure_groups_of([FailurePart(record.cause, record.job, 1, at, at, record.id) for record, at in ends], limit)
        window = None if page.cursor is None else page.examined
    samples: dict[bytes, Record] = {}
    for first in range(0, len(found), SAMPLES_AT_ONCE):
        records = await broker.read([group.sample for group in found[first : first + SAMPLES_AT_ONCE]])
        samples |= {record.id: record for record in records if record is not None}
    return Failures([_shown(group, samples.get(group.sample)) for group in found], window)


async def group_ids(console: Console, view: View, group: str) -> list[bytes]:
    """Return the ids of the group's jobs in this view, newest first."""
    fingerprint = bytes.fromhex(group)
    if view == View():
        return sorted(await console.failed_ids(fingerprint), reverse=True)
    found = pages(console, msgspec.structs.replace(view, statuses=(Status.FAILED,)))
    return [record.id async for records in found for record in records if record.fingerprint == fingerprint]


def _shown(group: FailureGroupRecord, sample: Record | None) -> FailureGroup:
    """Return the group. Its sample may have been retried or dropped meanwhile."""
    error = None if sample is None else sample.last_error
    return FailureGroup(
        id=group.fingerprint.hex(),
        count=group.count,
        first=group.first,
        last=group.last,
        jobs=group.jobs,
        deploys=group.deploys,
        error=(sample.reason if sample is not None else None) or "",
        frame="" if error is None else frame(error.traceback),
        sample=id_text(group.sample),
    )
