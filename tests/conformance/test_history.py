"""The history of what workers have measured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from taskflow.broker.engine import history
from taskflow.model.clock import instant_of
from taskflow.model.measures import MAX_COUNT, MAX_PAIRS, OTHER, Measure, Measures, add_up, pack_measures
from tests.support.world import World

LONG_AGO, LATER = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
MAIL = ("default", "mail")


def measures(runs: int = 1, pair: tuple[str, str] = MAIL) -> Measures:
    return {
        pair: Measure(
            runs={"succeeded": runs}, waits={10: runs}, times={20: runs}, waited=700 * runs, ran=600_000 * runs, deploys={"v1": runs}
        )
    }


async def record(world: World, *each: Measures) -> None:
    for one in each:
        await world.broker.admin.record_measures(world.an_id(), pack_measures(one))


async def periods(world: World, since: datetime = LONG_AGO, until: datetime = LATER) -> list[tuple[datetime, int, int]]:
    found = await world.broker.admin.history(since, until)
    return [(each.at, each.seconds, sum(measure.runs["succeeded"] for measure in each.measures.values())) for each in found]


async def settle_down(world: World) -> None:
    """Call upkeep until nothing is left to be added up."""
    for _ in range(6):
        await world.broker.upkeep(100)


async def start_of_a_minute(world: World) -> datetime:
    await world.pass_time(60.0 - world.clock.wall() / 1e6 % 60.0)
    return instant_of(world.clock.wall())


async def test_history_records(world: World) -> None:
    """What several workers record in a minute is added up, by queue and job."""
    at = await start_of_a_minute(world)
    await record(world, measures(2), measures(3), measures(1, ("other", "mail")))
    await world.pass_time(60.0)
    await record(world, measures(5))

    [first, second] = await world.broker.admin.history(at, LATER)
    assert (first.at, first.seconds, second.at) == (at, 60, at + timedelta(minutes=1))
    assert first.measures == {**measures(5), **measures(1, ("other", "mail"))}
    assert second.measures == measures(5)


async def test_history_records__only_the_periods_asked_for(world: World) -> None:
    """The answer has the whole of each period that overlaps the requested time."""
    at = await start_of_a_minute(world)
    for number in range(1, 5):
        await record(world, measures(number))
        await world.pass_time(60.0)
    minute = timedelta(minutes=1)
    assert [runs for _, _, runs in await periods(world, at + minute, at + 3 * minute)] == [2, 3]
    assert [runs for _, _, runs in await periods(world, at + minute * 1.5, at + 2.5 * minute)] == [2, 3]
    assert await periods(world, at + 4 * minute) == []


async def test_history_records__of_more_workers_than_one_query_reads(world: World) -> None:
    """A period whose measures take several queries has them all."""
    at = await start_of_a_minute(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "MAX_READ", 3)
        await record(world, *(measures(number) for number in range(1, 11)))
        await world.pass_time(60.0)
        await record(world, *(measures(number) for number in range(1, 4)))
        assert [runs for _, _, runs in await periods(world, at)] == [55, 6]


async def test_history_repeat(world: World) -> None:
    """A call whose answer was lost is sent again, and counts once."""
    record_id = world.an_id()
    for _ in range(3):
        await world.broker.admin.record_measures(record_id, pack_measures(measures(4)))
    assert [runs for _, _, runs in await periods(world)] == [4]


async def test_history_levels(world: World) -> None:
    """Minutes become ten minutes, and these hours. No run is lost or counted twice on the way."""
    at = await start_of_a_minute(world)
    await world.pass_time(3_600.0 - at.timestamp() % 3_600)
    at = instant_of(world.clock.wall())
    for _ in range(12):
        await record(world, measures(1), measures(2))
        await world.pass_time(60.0)
        await settle_down(world)
    assert await periods(world) == [(at + timedelta(minutes=n), 60, 3) for n in range(12)]

    await world.pass_time(4 * 3_600.0)
    await settle_down(world)
    assert await periods(world) == [(at, 600, 30), (at + timedelta(minutes=10), 600, 6)]

    await world.pass_time(3 * 86_400.0)
    await settle_down(world)
    assert await periods(world) == [(at, 3_600, 36)]
    [hour] = await world.broker.admin.history(at, LATER)
    assert hour.measures == measures(36)

    await world.pass_time(31 * 86_400.0)
    await settle_down(world)
    assert await periods(world) == []


async def test_history_spoilt(world: World) -> None:
    """Bytes that no worker has written are ignored, and are dropped with the others."""
    for packed in (b"", b"\xc1", pack_measures({})[:-1] + b"\xff", b"x" * 2_000_000):
        await world.broker.admin.record_measures(world.an_id(), packed)
    await record(world, measures(2))
    await world.pass_time(3 * 86_400.0)
    await settle_down(world)
    assert [runs for _, _, runs in await periods(world)] == [2]


async def test_history_spoilt__numbers_beyond_all_counts(world: World) -> None:
    """Such numbers stop no upkeep. A sum stops at the highest count, and numbers below zero or beyond it are ignored."""
    await record(
        world,
        {MAIL: Measure(runs={"succeeded": -5})},
        {MAIL: Measure(runs={"succeeded": 1 << 63})},
        {MAIL: Measure(waits={-7: 1})},
        {MAIL: Measure(times={10**12: 1})},
        {MAIL: Measure(ran=-1)},
    )
    await record(world, measures(2))
    await world.pass_time(3 * 86_400.0)
    await settle_down(world)
    assert [runs for _, _, runs in await periods(world)] == [2]

    highest: Measures = {MAIL: Measure(runs={"succeeded": MAX_COUNT}, waits={10: MAX_COUNT}, waited=MAX_COUNT)}
    await record(world, highest, highest)
    await world.pass_time(300.0)
    await settle_down(world)
    assert [runs for _, _, runs in await periods(world)] == [2, MAX_COUNT]


def test_further_pairs_are_added_to_other() -> None:
    many = [measures(1, ("default", str(number))) for number in range(MAX_PAIRS + 20)]
    into = Measures()
    for each in many:
        add_up(into, each)
    assert len(into) == MAX_PAIRS + 1
    assert into[OTHER] == measures(20)[MAIL]
