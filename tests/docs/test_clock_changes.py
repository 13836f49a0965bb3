"""The table of clock changes is what the code computes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from taskflow import Cron
from tests.docs.pages import ROOT

_ROWS: Final = re.findall(
    r"^\| (\w+/\w+) \| ([\d-]+) \| ([^|]*) \| `([^`]+)` \| ([^|]+) \|$", (ROOT / "docs/how-to/schedule-jobs.md").read_text(), re.MULTILINE
)


def fired_on(day: str, zone: ZoneInfo, expression: str) -> list[str]:
    at = datetime.fromisoformat(day).replace(tzinfo=zone).astimezone(UTC) - timedelta(microseconds=1)
    cron, found = Cron(expression, tz=zone), []
    while (following := cron.next(at)) is not None and following.astimezone(zone).date().isoformat() == day:
        at = following
        offset = at.astimezone(zone).strftime("%z")
        found.append(f"{at.astimezone(zone):%H:%M} {offset[:3]}:{offset[3:]}")
    return found


def test_there_are_changes_of_five_zones() -> None:
    assert len({zone for zone, *_ in _ROWS}) == 5


@pytest.mark.parametrize(("zone", "day", "change", "expression", "times"), _ROWS)
def test_a_schedule_fires_as_the_table_says(zone: str, day: str, change: str, expression: str, times: str) -> None:
    shown = list(takewhile(lambda time: time != "...", times.strip().split(", ")))
    fired = fired_on(day, ZoneInfo(zone), expression)
    assert (fired[: len(shown)] if times.strip().endswith("...") else fired) == shown


@pytest.mark.parametrize(("zone", "day", "change"), [row[:3] for row in _ROWS if row[2]])
def test_the_clock_changes_as_the_table_says(zone: str, day: str, change: str) -> None:
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    before, after = (begin + timedelta(hours=int(time[:2]), minutes=int(time[3:])) for time in change.strip().split(" → "))
    gained = (before - timedelta(minutes=1)).astimezone(UTC) + timedelta(minutes=1)
    assert gained.astimezone(begin.tzinfo).replace(tzinfo=None) == after.replace(tzinfo=None)
