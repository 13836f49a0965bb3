"""A fleet's schedules: workers that arrive, leave, die and are replaced, on each store, under a clock that the test moves."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest

from taskflow import Cron, Every, group, named
from taskflow.app.declared_schedules import plan_of, terms_of
from taskflow.model import timetable
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerRefused
from taskflow.model.record import Record
from taskflow.model.schedule import Definition, Firing
from taskflow.model.schedule_plan import SchedulePlan, _encode, id_of
from taskflow.model.session import Session
from taskflow.model.timetable import MAX_EXPRESSION, MAX_ZONE, CronTimes, EveryTimes
from taskflow.worker.events import ScheduleFailed, ScheduleMissed
from taskflow.worker.maintenance import PASS_ON_DELAY
from tests.support.harnesses import BROKERS, MemoryHarness
from tests.support.listing import listed
from tests.support.schedules import DAY, Process, replaced
from tests.support.verdicts import succeeded
from tests.support.world import World

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """All stores share the code that most of these tests run; a test that needs each store says so."""
    async with World(getattr(request, "param", MemoryHarness)) as opened:
        yield opened


on_each_store = pytest.mark.parametrize("world", BROKERS, indirect=True, ids=lambda harness: harness.name)


async def jobs(world: World) -> list[Record]:
    """Return all jobs that schedules have added, oldest first."""
    found = await listed(world.broker.admin)
    return sorted(found, key=lambda record: record.headers["tf-scheduled-for"])


async def fired(world: World) -> list[str]:
    """Return the times that have added a job, each as often as it did."""
    return [record.headers["tf-scheduled-for"].removesuffix("+00:00[UTC]").removeprefix("2026-01-") for record in await jobs(world)]


# --- one firing -----------------------------------------------------------------------------------------------------------


@on_each_store
async def test_each_time_fires_once_whoever_is_there(world: World) -> None:
    processes = [await Process(world, schedule=Cron("0 */6 * * *")).begin() for _ in range(3)]
    for n in range(48):
        await processes[n % 3].work(3_600.0, step=1_800.0)
    assert await fired(world) == [f"0{1 + n // 4}T{n % 4 * 6:02}:00:00" for n in range(1, 9)]


@on_each_store
async def test_a_thousand_due_at_once(world: World) -> None:
    process = await Process(world, schedule=[Every(3_600, name=f"s{number}") for number in range(1_000)]).begin()
    await process.work(1.0, step=1.0)
    world.clock.advance(3_600.0)
    calls = 0
    while await process.upkeep() <= 0:
        calls += 1
    assert Counter(record.headers["tf-schedule"] for record in await jobs(world)) == Counter(f"s{number}" for number in range(1_000))
    assert calls <= 20


# --- misfires and overlap ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [("none", []), ("latest", ["05T09:00:00"]), ("all", ["02T09:00:00", "03T09:00:00", "04T09:00:00", "05T09:00:00"])],
)
async def test_a_fleet_that_was_down_for_days(world: World, catch_up: str, expected: list[str]) -> None:
    first = await Process(world, schedule=Cron("0 9 * * *"), catch_up=catch_up).begin()
    await first.work(DAY, step=3_600.0)
    await first.end()
    await world.pass_time(3.5 * DAY)

    second = await Process(world, schedule=Cron("0 9 * * *"), catch_up=catch_up).begin()
    await second.work(60.0, step=10.0)

    assert await fired(world) == ["01T09:00:00", *expected]
    missed = sum(event.count for event in second.events if isinstance(event, ScheduleMissed))
    assert missed == 4 - len(expected)
    await second.work(3_540.0, step=3_540.0)  # from here on it checks at each full hour
    await second.work(DAY, step=3_600.0)
    assert (await fired(world))[-1] == "06T09:00:00"


async def run_next(world: World, session: Session) -> Lease:
    [lease] = await world.claim(session, limit=1)
    return lease


async def test_skip_while_an_earlier_job_is_live(world: World) -> None:
    """A job that does not end, or fails again and again, does not hold up the schedule."""
    process = await Process(world, schedule=Cron("0 * * * *"), overlap="skip").begin()
    session = await world.a_session("runner", ttl=1_000 * DAY)
    await process.work(3_600.0, step=600.0)
    lease = await run_next(world, session)

    await process.work(3 * 3_600.0, step=600.0)
    assert await fired(world) == ["01T01:00:00"]
    [record] = await world.broker.admin.schedules(["report"])
    assert (record.fired, record.skipped, record.next_at) == (1, 3, START + timedelta(hours=5))

    await world.settle(succeeded(lease))
    await process.work(3_600.0, step=600.0)
    assert (await fired(world))[-1] == "01T05:00:00"


async def test_a_schedule_that_the_store_refuses_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await Process(world, schedule=[Every(60, name="good"), Every(60, name="bad")]).begin()
    fire = world.broker.fire

    async def refusing(firings: list[Firing]) -> Any:
        if any(firing.name == "bad" for firing in firings):
            raise BrokerRefused("a value that it cannot store")
        return await fire(firings)

    monkeypatch.setattr(world.broker, "fire", refusing)
    await process.work(120.0, step=10.0)
    assert await fired(world) == ["01T00:01:00", "01T00:02:00"]
    [failed] = [event for event in process.events if isinstance(event, ScheduleFailed)]
    assert (failed.name, failed.why) == ("bad", "BrokerRefused: a value that it cannot store")


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, GeneratorExit])
async def test_an_error_of_a_timetable_affects_no_other_schedule(world: World, error: type[BaseException]) -> None:
    class Raising:
        name = "raising"

        def next(self, after: datetime) -> datetime | None:
            raise error

    process = await Process(world, schedule=[Raising(), Every(60, name="good")]).begin()
    await process.work(60.0, step=10.0)
    assert await fired(world) == ["01T00:01:00"]
    assert [event.name for event in process.events if isinstance(event, ScheduleFailed)] == ["raising"]


async def test_stored_schedules_that_cannot_be_computed_hold_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may store text of any length. It is not parsed, and an unknown zone is looked up once."""
    parse, look = Mock(wraps=timetable._parsed), Mock(wraps=timetable._zone_names)
    monkeypatch.setattr(timetable, "_parsed", parse)
    monkeypatch.setattr(timetable, "_zone_names", look)
    long = [CronTimes(",".join(["*/1"] * (1 << 18)) + " * * * *"), CronTimes("0 9 * * *", "Z" * (1 << 20))]
    unknown = [CronTimes("0 9 * * *", f"Nowhere/{world.broker.__module__}{number}"[-MAX_ZONE:]) for number in range(20)]
    for number, times in enumerate([*long, *unknown]):
        body = _encode(SchedulePlan(times=times, template=world.an_envelope()))
        await world.broker.define([Definition(f"bad {number}", hashlib.sha256(body).digest()[:16], body)])
    process = await Process(world, schedule=Every(1, name="good")).begin()
    await process.work(5.0, step=1.0)
    assert await fired(world) == [f"01T00:00:0{second}" for second in range(1, 6)]
    failures = {event.name for event in process.events if isinstance(event, ScheduleFailed)}
    assert failures == {f"bad {number}" for number in range(22)}
    assert all(len(call.args[0]) <= MAX_EXPRESSION for call in parse.call_args_list)
    assert look.call_count <= len(unknown)
    assert await world.broker.admin.schedules(["bad 0"])


# --- deploys ------------------------------------------------------------------------------------------------------------------


@on_each_store
async def test_a_deploy_changes_a_schedule(world: World) -> None:
    """From the first new process on, its times are in force, even while old ones run."""
    old = await Process(world, "old", schedule=Cron("0 9 * * *")).begin()
    await old.work(DAY, step=3_600.0)
    world.clock.advance(1.0)
    new = await Process(world, "new", schedule=Cron("0 10 * * *")).begin()
    await old.work(DAY, step=1_800.0)
    await old.end()
    await new.work(DAY, step=1_800.0)
    assert await fired(world) == ["01T09:00:00", "02T10:00:00", "03T10:00:00"]


async def test_a_deploy_removes_a_schedule(world: World) -> None:
    """It fires while an old process runs, then sleeps; code that declares it again wakes it."""
    old = await Process(world, "old", schedule=Cron("0 9 * * *")).begin()
    new = await Process(world, "new").begin()
    await new.work(DAY, step=1_800.0)
    assert await fired(world) == ["01T09:00:00"]
    await old.end()
    await new.work(DAY, step=1_800.0)
    assert await fired(world) == ["01T09:00:00"]
    [record] = await world.broker.admin.schedules()
    assert record.asleep_since is not None
    await (await Process(world, "newer", schedule=Cron("0 9 * * *"), catch_up="none").begin()).work(DAY, step=1_800.0)
    assert await fired(world) == ["01T09:00:00", "03T09:00:00"]


class Odd:
    """An application's own timetable."""

    def next(self, after: datetime) -> datetime | None:
        return START + timedelta(days=(after - START).days + 1, hours=1)


async def test_a_timetable_of_the_application_is_computed_where_it_is(world: World) -> None:
    """A worker without that code leaves it to others."""
    other = await Process(world, "other").begin()
    one = await Process(world, "one", schedule=Odd()).begin()
    await one.work(1.0, step=1.0)
    world.clock.advance(DAY + 3_600.0)
    await other.upkeep()
    assert await fired(world) == []
    world.clock.advance(PASS_ON_DELAY)
    await one.upkeep()
    assert await fired(world) == ["02T01:00:00"]


# --- clocks ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [600.0, -600.0])
async def test_the_stores_clock_is_set(world: World, skew: float) -> None:
    """The clock is set by ten minutes, forth or back: each time fires once, and none is left out."""
    process = await Process(world, schedule=Every(60), catch_up="all").begin()
    await process.work(1_800.0)
    world.clock.skew(skew)
    await process.work(1_800.0)
    until = START + timedelta(seconds=3_600.0 + skew)
    expected = [START + timedelta(minutes=n) for n in range(1, 121) if START + timedelta(minutes=n) <= until]
    assert await fired(world) == [f"{at:%dT%H:%M:%S}" for at in expected]


@on_each_store
async def test_a_day_of_workers_that_are_killed(world: World) -> None:
    """They die with an unfired offer, after sending a firing, or between two: no time is missed, and none fires twice. A flow is whole."""
    chance = random.Random(24)
    schedule: dict[str, Any] = {"schedule": [Cron("*/30 * * * *", name="half"), Every(1_200, name="third")], "catch_up": "all"}
    flow = (group(named("part").bind(n=n) for n in range(3)) | named("end").bind())._templates()
    plan = plan_of(EveryTimes(3_600.0), flow, jitter=0.0, terms=terms_of("allow", "all", None))
    await world.broker.define([plan.to_definition("flow")], None, 0.0)
    processes = [await Process(world, **schedule).begin() for _ in range(5)]
    until = world.clock.wall() + round(DAY * 1e6)
    while world.clock.wall() < until:
        victim = chance.randrange(5)
        offers = (await world.upkeep()).offers
        match chance.choice(["fires", "fires", "dies before", "dies after", "fires twice"]):
            case "fires" if offers:
                await processes[victim].scheduler.fire(offers)
            case "fires twice" if offers:
                await processes[victim].scheduler.fire(offers)
                await processes[(victim + 1) % 5].scheduler.fire(offers)
            case "dies after" if offers:
                await processes[victim].scheduler.fire(offers)
                processes[victim] = await replaced(processes[victim], world, schedule)
            case "dies before":
                processes[victim] = await replaced(processes[victim], world, schedule)
        world.clock.advance(chance.choice([1.0, 60.0, 300.0]))
    for _ in range(100):
        world.clock.advance(2.0)
        await processes[0].upkeep()
    by_name = Counter((record.headers["tf-schedule"], record.headers["tf-scheduled-for"]) for record in await jobs(world))
    assert {(name, count) for (name, _), count in by_name.items()} == {("half", 1), ("third", 1), ("flow", 4)}
    now = world.clock.wall()
    for name, every in (("half", 1_800_000_000), ("third", 1_200_000_000)):
        begin = round(START.timestamp() * 1e6) // every + 1
        ids = {id_of(name, n * every) for n in range(begin, now // every + 1)}
        assert {record.id for record in await jobs(world) if record.headers["tf-schedule"] == name} == ids
    begin, end = round(START.timestamp()) // 3_600 + 1, now // 3_600_000_000
    assert sum(name == "flow" for name, _ in by_name) == end - begin + 1
