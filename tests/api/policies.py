# ruff: noqa: RET504  # the blocks stand as they were promised
from __future__ import annotations

from datetime import datetime
from typing import Any, assert_type

from taskflow import Cron, Every, Job, JobContext, JobHandle, job, schedules


# fmt: off
# block 7.1
@job(schedule=Cron("0 9 * * MON-FRI", tz="Europe/Paris"))           # one firing, however many workers
async def morning(ctx: JobContext) -> None:
    print(ctx.scheduled_for)                                         # the instant that this run stands for: datetime | None

@job(schedule=Every(seconds=30, jitter=5), overlap="skip")           # "skip" | "latest" | "allow"
async def poll() -> None: ...
# end of block
# fmt: on


@job
async def monthly() -> str:
    return "done"


# fmt: off
async def block_7_2(start: datetime, end: datetime) -> list[JobHandle[Any]]:
    # block 7.2
    await schedules.put("nightly", monthly.bind(), Cron("0 3 * * *"), catch_up="latest", max_delay=3600)     # at run time, stored
    await schedules.trigger("nightly")                                   # leaves the next firing alone; get, list, pause, resume, remove
    handles = await schedules.backfill("nightly", start, end, limit=1_000)
    # end of block
    return handles
# fmt: on


def types(context: JobContext) -> None:
    """A schedule changes nothing about the job's type."""
    assert_type(morning, Job[[], None])
    assert_type(context.scheduled_for, datetime | None)
