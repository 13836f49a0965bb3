"""Four hundred days of schedules in zones whose clocks change, with workers that are killed, compared with a plain calendar."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow import Cron
from taskflow.model.clock import ManualClock, microseconds_of
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import scheduled_for
from tests.support.calendars import Calendar
from tests.support.harnesses import MemoryHarness
from tests.support.listing import listed
from tests.support.schedules import Process, replaced
from tests.support.world import World

pytestmark = pytest.mark.unmeasured

EXPRESSIONS = ("0 0 * * *", "30 2 * * *", "15 1-3 * * 0,6")
ZONES = {
    "Europe/Berlin": 2026,
    "America/New_York": 2026,
    "Australia/Lord_Howe": 2026,
    "America/Santiago": 2026,
    "Africa/Cairo": 2026,
    "Pacific/Apia": 2011,
}


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.sampled(3)
async def test_no_time_is_missed_or_doubled_in_400_days(tz: str) -> None:
    """Two workers fire what they are offered, and die before, after or in between. All stores share the code that this runs."""
    chance = random.Random(tz)
    start = datetime(ZONES[tz], 1, 1, tzinfo=UTC)
    end = start + timedelta(days=400)
    async with World(MemoryHarness, clock=ManualClock(start)) as world:
        declared: dict[str, Any] = {"schedule": [Cron(each, tz=tz, name=each) for each in EXPRESSIONS], "catch_up": "all"}
        processes = [await Process(world, **declared).begin() for _ in range(2)]
        while world.clock.wall() < microseconds_of(end):
            await let_one_work(world, processes, declared, chance)
            due = [record.next_at for record in await world.broker.admin.schedules() if record.next_at is not None]
            pause = (min(due, default=start) - start).total_seconds() - (world.clock.wall() - microseconds_of(start)) / 1e6
            world.clock.advance(max(0.0, pause) + chance.choice([0.0, 0.0, 0.25, 5.0, 90.0]))
        found = dict[str, list[datetime]]()
        for record in await listed(world.broker.admin):
            at = scheduled_for(record.headers)
            assert at is not None
            found.setdefault(record.headers[SCHEDULE], []).append(at.astimezone(UTC))
    for expression in EXPRESSIONS:
        expected = Calendar(expression, tz).between(start, end + timedelta(hours=1))
        times = sorted(found[expression])
        assert times == expected[: len(times)]
        assert [at for at in expected[len(times) :] if at < end] == []


async def let_one_work(world: World, processes: list[Process], declared: dict[str, Any], chance: random.Random) -> None:
    """Everything due is offered to one worker after the other. Some die of it, and the next gets the offer a second later."""
    while offers := (await world.upkeep()).offers:
        number = chance.randrange(2)
        fate = chance.choice(["lives"] * 40 + ["dies before", "dies after", "is late"])
        if fate != "dies before":
            await processes[number].scheduler.fire(offers)
        if fate == "is late":
            await processes[1 - number].scheduler.fire(offers)
        if fate.startswith("dies"):
            processes[number] = await replaced(processes[number], world, declared)
            world.clock.advance(1.0)
