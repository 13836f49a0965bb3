"""The calendar of schedules: future times, clock changes, and bounds."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta

import pytest

from taskflow import Cron, Every, schedules
from taskflow.app.app import App, default_app
from taskflow.app.decorator import _declare
from taskflow.dashboard import calendar
from taskflow.dashboard.calendar import Row, days_from, rows_of
from taskflow.model.timetable import zone_of
from tests.dashboard.site import Site
from tests.support.schedules import Process
from tests.support.world import World
from tests.unit.app.jobs import nothing


async def rows(first: date, tz: str = "UTC", *, now: datetime | None = None) -> dict[str, Row]:
    zone = zone_of(tz)
    days = days_from(first, zone)
    records = await default_app().client().call(lambda broker: broker.admin.schedules(None))
    return {row.info.name: row for row in rows_of(default_app(), records, days, zone, now or days[0].start)}


def shown(row: Row) -> list[list[str]]:
    """Return what the cells of a row show."""
    return [
        [" ".join(filter(None, (each.yours, each.own, each.note))) for each in cell.times] + ["..."] * cell.is_more for cell in row.cells
    ]


async def test_times_are_those_of_both_zones(memory: World) -> None:
    await schedules.put("york", nothing.bind(), Cron("30 21 * * MON-WED", tz="America/New_York"))
    await schedules.put("utc", nothing.bind(), Cron("15 8 * * *"))
    found = await rows(date(2026, 11, 30), "Europe/Paris", now=datetime(2026, 11, 30, 8, tzinfo=UTC))  # a Monday
    assert shown(found["utc"]) == [["09:15 08:15"]] * 7
    assert shown(found["york"]) == [[], ["03:30 21:30"], ["03:30 21:30"], ["03:30 21:30"], [], [], []]
    assert found["york"].cells[1].times[0].at.isoformat() == "2026-11-30T21:30:00-05:00"
    assert [each[0] for each in shown((await rows(date(2026, 11, 30)))["utc"])] == ["08:15"] * 7


async def test_clock_changes_are_marked(memory: World) -> None:
    """A skipped time fires when the clock is set forward; a repeated one fires the first time, or both times if it counts real time."""
    await schedules.put("local", nothing.bind(), Cron("30 2 * * *", tz="Europe/Paris"))
    await schedules.put("real", nothing.bind(), Cron("30 */1 * * *", tz="Europe/Paris"))
    spring = await rows(date(2026, 3, 28))
    assert shown(spring["local"])[:3] == [["01:30 02:30"], ["01:00 03:00 02:30 is skipped"], ["00:30 02:30"]]
    assert [cell.change for cell in spring["local"].cells][:3] == ["", "clock forward 1h: 02:00 → 03:00", ""]
    autumn = await rows(date(2026, 10, 24))
    assert shown(autumn["local"])[1] == ["00:30 02:30 the clock shows it twice: first time"]
    assert autumn["local"].cells[1].change == "clock back 1h: 03:00 → 02:00"
    days = days_from(date(2026, 10, 25), zone_of("Europe/Paris"))
    assert (days[0].change, days[0].end - days[0].start) == ("clock back 1h: 03:00 → 02:00", timedelta(hours=25))
    half_past_two = (await rows(date(2026, 10, 25), now=datetime(2026, 10, 25, 0, 15, tzinfo=UTC)))["real"].cells[0].times
    assert [each.note for each in half_past_two] == ["the clock shows it twice: first time"]


async def test_of_many_times_the_first_is_shown(memory: World) -> None:
    await schedules.put("often", nothing.bind(), Every(seconds=1))
    await schedules.put("thrice", nothing.bind(), Cron("0 6,12,18 * * *"))
    began = time.perf_counter()
    found = await rows(date(2026, 11, 30))
    assert time.perf_counter() - began < 1
    assert shown(found["often"]) == [["00:00", "..."]] * 7
    assert shown(found["thrice"]) == [["06:00", "12:00", "18:00"]] * 7


async def test_a_schedule_that_does_not_fire_has_no_times(memory: World) -> None:
    await schedules.put("paused", nothing.bind(), Every(seconds=1))
    await schedules.pause("paused")
    [row] = (await rows(date(2026, 11, 30))).values()
    assert shown(row) == [[]] * 7


def report() -> None: ...


class Daily:
    """An application's timetable. A broken one returns the same time for ever."""

    is_broken = False

    def next(self, after: datetime) -> datetime | None:
        return after if self.is_broken else after.replace(hour=5, minute=0, second=0, microsecond=0) + timedelta(days=1)


async def test_timetables_of_the_application_are_asked_if_its_code_is_here(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    _declare(app, report, {"name": "report", "schedule": Daily()})
    await Process(memory, schedule=Daily()).begin()
    days = days_from(date(2026, 11, 30), UTC)
    records = await memory.broker.admin.schedules(None)
    [here] = rows_of(app, records, days, UTC, days[0].start)
    assert shown(here)[:3] == [["05:00"], ["05:00"], ["05:00"]]
    [elsewhere] = rows_of(default_app(), records, days, UTC, days[0].start)
    assert "import the module that declares it first" in elsewhere.problem
    monkeypatch.setattr(Daily, "is_broken", True)
    [broken] = rows_of(app, records, days, UTC, days[0].start)
    assert (shown(broken), "which is not later" in broken.problem) == ([[]] * 7, True)


async def test_a_page_of_the_calendar(world: World, site: Site) -> None:
    assert "There are no schedules" in (await site.get("/schedules/calendar")).text
    await schedules.put("nightly", nothing.bind(), Cron("0 3 * * *", tz="Europe/Paris"))
    page = await site.get("/schedules/calendar")
    assert page.all("input", name="tz", value="UTC", **{"data-zone": ""})
    today, week = datetime.now(UTC).date(), timedelta(days=7)
    assert today.strftime("%a %d %b") in page.text
    later = await site.get(f"/schedules/calendar?tz=Asia/Tokyo&from={today + week}")
    assert later.text.count("11:00 03:00") + later.text.count("10:00 03:00") == 7
    assert later.all("a", rel="prev")
    past = await site.get("/schedules/calendar?from=1999-12-31")
    assert today.strftime("%a %d %b") in past.text
    await site.get(page.all("a", rel="next")[0]["href"])
    await site.get("/schedules/calendar?from=9999-12-31")
    for query in ("tz=Nowhere/Else", "from=tomorrow", f"tz={'x' * 1_000}"):
        await site.get(f"/schedules/calendar?{query}", code=400)


async def test_a_page_of_many_schedules_is_bounded(memory: World, site: Site) -> None:
    for number in range(calendar.MAX_ROWS + 10):
        await schedules.put(f"schedule-{number:03}", nothing.bind(), Cron(f"{number} 3,4,5 * * *", tz="America/New_York"))
    page = await site.get("/schedules/calendar")
    assert "Schedules 1 to 25 of 35" in page.text
    assert len(page.answer.content) < 60_000
    [more] = [link for link in page.links if "start=" in link]
    assert "Schedules 26 to 35 of 35" in (await site.get(more)).text
    assert "schedule-034" in (await site.get(more)).text
