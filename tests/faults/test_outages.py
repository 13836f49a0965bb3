"""Any broker is unavailable for a while: workers neither end nor spin nor lose verdicts, and senders get an error in time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Final

import pytest

import taskflow
from taskflow import Every, JobContext, job, schedules
from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from taskflow.broker.url import connect
from taskflow.worker.events import SessionEnded
from tests.cli.processes import Shell, on_each_broker
from tests.faults.firing import each_second_fires_once
from tests.faults.outage import Bench
from tests.support.outages import Outage, PostgresOutage, RedisOutage
from tests.support.waiting import until

MANY = 60
LONG = range(MANY, MANY + 10)

PROMPT: Final = 0.3
"""Seconds within which a busy machine cancels a run whose time is up."""


@pytest.mark.parametrize("kind", [RedisOutage, PostgresOutage], ids=lambda kind: kind.name)
async def test_connections_that_are_cut_are_opened_again_the_heartbeat_too(kind: type[RedisOutage | PostgresOutage]) -> None:
    """Beats reach the broker again, and the session and its runs live on."""
    with kind() as outage:
        bench = Bench(outage)
        async with bench.work(ttl=8):
            await bench.send(LONG, float("inf"))
            await until(lambda: len(bench.begun) == len(LONG))
            outage.cut()
            await bench.until_beaten()
            bench.release.set()
            await until(lambda: len(bench.ended) == len(LONG))
        assert not bench.has(SessionEnded)
        assert max(bench.begun.values()) == 1


@pytest.mark.parametrize("kind", [RedisOutage, PostgresOutage], ids=lambda kind: kind.name)
async def test_a_worker_that_is_cut_off_in_silence_stops_its_runs_before_others_take_them(kind: type[RedisOutage | PostgresOutage]) -> None:
    """The session lapses in the store a ttl after its last beat arrived, whether or not the worker still waits for an answer."""
    ttl, started, cancelled = 2.0, asyncio.Event(), asyncio.Event()

    @job(name="tests.outage.notes_its_cancellation")
    async def notes_its_cancellation() -> float:
        started.set()
        try:
            return await asyncio.sleep(60, 0.0)
        finally:
            cancelled.set()

    with kind() as outage:
        bench, straight = Bench(outage), connect(outage.straight)
        async with bench.work(ttl=ttl):
            await notes_its_cancellation.delay()
            await asyncio.wait_for(started.wait(), 20)
            await bench.until_beaten()
            outage.fall_silent()
            asked_at = time.monotonic()
            [worker] = await straight.admin.workers()
            lapses_at = asked_at - worker.seconds_since_beat + ttl
            await asyncio.wait_for(cancelled.wait(), 20)
            assert time.monotonic() <= lapses_at + PROMPT
            outage.come_back()
        await straight.close()


async def test_an_outage_that_is_shorter_than_the_ttl_costs_nothing(outage: Outage) -> None:
    """A run that ends meanwhile is settled afterwards, by the same session, and does not run again. Runs go on."""
    bench = Bench(outage)
    async with bench.work(ttl=60):
        await bench.send(LONG, float("inf"))
        await bench.send(range(MANY), 0.3)
        await until(lambda: len(bench.begun) > len(LONG))
        async with bench.away():
            await bench.cannot_send()
            at_work = set(bench.begun) - set(LONG)
            await until(lambda: at_work <= set(bench.ended))
        bench.release.set()
        await until(lambda: len(bench.ended) == MANY + len(LONG))
        await bench.send([MANY * 2])
        await until(lambda: bench.ended[MANY * 2] == 1)
    assert max(bench.ended.values()) == 1
    assert not bench.has(SessionEnded)
    bench.nothing_was_in_vain()
    bench.has_not_spun()


@on_each_broker
@pytest.mark.unmeasured
def test_each_second_fires_once_while_workers_are_killed(shell: Shell, new_store: Callable[[], str]) -> None:
    shell.environment["TASKFLOW_BROKER"] = new_store()
    each_second_fires_once(shell, 5.0, every=1.5)


@pytest.mark.parametrize("outage", [PostgresOutage], indirect=True, ids=lambda kind: kind.name)
async def test_times_that_an_outage_covers_are_caught_up(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outage is longer than a firing may be late, so that `catch_up` decides: all times fire, each once."""
    monkeypatch.setattr(default_app(), "registry", Registry())
    seen = Counter[datetime]()

    @taskflow.job(name="tests.outage.tick", schedule=Every(1), catch_up="all")
    async def tick(ctx: JobContext) -> None:
        assert ctx.scheduled_for is not None
        seen[ctx.scheduled_for] += 1

    bench = Bench(outage)
    async with bench.work(ttl=60):
        await until(lambda: bool(seen))
        async with bench.away():
            await asyncio.sleep(12.0)
        back_at = time.time()
        await until(lambda: max(at.timestamp() for at in seen) > back_at + 1)
        [info] = await schedules.list()
    instants = sorted(at.timestamp() for at in seen)
    assert instants == [instants[0] + n for n in range(len(instants))]
    assert set(seen.values()) == {1}
    assert (info.missed, info.skipped) == (0, 0)
