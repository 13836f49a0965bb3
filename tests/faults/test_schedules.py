"""Schedules while workers die and the broker is away."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import pytest

import taskflow
from taskflow import Every, JobContext, schedules
from taskflow.app.app import default_app
from taskflow.app.job_type import Registry
from tests.cli.processes import Shell, on_each_broker
from tests.faults.firing import each_second_fires_once
from tests.faults.outage import Bench
from tests.support.outages import Outage, PostgresOutage
from tests.support.waiting import until


@on_each_broker
@pytest.mark.unmeasured
def test_each_second_fires_once_while_workers_are_killed(shell: Shell, new_store: Callable[[], str]) -> None:
    shell.environment["TASKFLOW_BROKER"] = new_store()
    each_second_fires_once(shell, 5.0, every=1.5)


@pytest.mark.parametrize("outage", [PostgresOutage], indirect=True, ids=lambda kind: kind.name)
async def test_times_that_an_outage_covers_are_caught_up(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than what counts as prompt, so that `catch_up` decides: all of them, each once."""
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
