"""Schedules: how late their jobs begin on an idle worker, and the cost of ten thousand schedules that are not due."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.processes import a_worker, using
from benchmarks.report import Measured, Row, in_turn, of_lags
from benchmarks.stores import Store
from benchmarks.tasks import wall
from taskflow import Cron, Every, JobHandle, schedules
from taskflow.broker.protocol import Broker
from taskflow.model.clock import microseconds_of
from taskflow.model.ids import id_text
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import SchedulePlan, scheduled_for
from tests.support.listing import listed

NUMBER: Final = 5
EVERY: Final = 1.0
JITTER: Final = 0.95
"""Seconds. The jitter spreads the schedules over each second, so that each fires alone."""

WATCHED_FOR: Final = 41.0
LEFT_OUT: Final = 1.0
"""Seconds at the start that are left out, because the schedules are computed for the first time."""

MANY: Final = 10_000
SETTLED_IN: Final = 45.0
IDLE_FOR: Final = 30.0


def lags(options: Options) -> list[Row]:
    """Measure on each store the time from a schedule's time to the first line of its job."""
    rows: list[Row] = []
    for name in PLACES:
        measure = partial(_run_lags, name, options)
        rows += in_turn(f"{name}, {NUMBER} schedules that fire each second", options.repeats, measure, part=name)
    return rows


def _run_lags(name: str, options: Options) -> Measured:
    with PLACES[name](options.under) as url:
        return run_in_fastest_loop(_lags(url))


async def _lags(url: str) -> Measured:
    async with using(url) as broker, a_worker(url):
        call = wall.options(keep_result=600).bind()
        for number in range(NUMBER):
            await schedules.put(f"s{number}", call, Every(EVERY, jitter=JITTER))
        begins_at = datetime.now(UTC) + timedelta(seconds=LEFT_OUT)
        await asyncio.sleep(WATCHED_FOR)
        return of_lags([lag for at, lag in await _lags_of(broker) if at >= begins_at])


async def _lags_of(broker: Broker) -> list[tuple[datetime, float]]:
    """Return the times that have fired, each with the seconds until its job's first line."""
    bodies = {record.name: SchedulePlan.from_body(record.body) for record in await broker.admin.schedules()}
    found = list[tuple[datetime, float]]()
    for record in await listed(broker.admin):
        at = scheduled_for(record.headers)
        if at is not None and record.result is not None:
            name = record.headers[SCHEDULE]
            due_at = microseconds_of(at) + bodies[name].delay_of(name, microseconds_of(at))
            found.append((at, await JobHandle.of(id_text(record.id), wall).result(0) - due_at / 1e6))
    return found


def idleness(store: Store, options: Options) -> list[Row]:
    """Measure an idle worker that only has to know when the first of many schedules is due."""
    return in_turn(f"{MANY:,} schedules, none due", options.repeats, partial(_idle, store), part="idle")


def _idle(store: Store) -> Measured:
    return run_in_fastest_loop(_idle_beside(store))


async def _idle_beside(store: Store) -> Measured:
    with store.start() as server:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(using(server.url))
            await stack.enter_async_context(a_worker(server.url))
            call, yearly = wall.bind(), Cron(f"0 0 {(datetime.now(UTC) - timedelta(days=2)):%d %m} *")
            for number in range(MANY):
                await schedules.put(f"s{number}", call, yearly)
            await asyncio.sleep(SETTLED_IN)
            told = server.sent()
            await asyncio.sleep(IDLE_FOR)
            return {"commands a second": (server.sent() - told) / IDLE_FOR}
