"""Which schedules `@job` declares, and which it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from taskflow import Cron, DeclarationError, Every, job
from taskflow.app.app import App, default_app
from taskflow.model.schedule_plan import SchedulePlan

any_job: Any = job


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(default_app(), "registry", type(default_app().registry)())
    return default_app()


class Plain:
    def next(self, after: datetime) -> datetime | None:
        return after + timedelta(hours=1)


class Named(Plain):
    name = "mine"


@dataclass
class Shown(Plain):
    hour: int


def names(**options: Any) -> list[str]:
    async def report(day: int = 0) -> None: ...

    return [schedule.name for schedule in any_job(name="report", **options)(report).schedules]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, []),
        ([None], []),
        (Plain(), ["report"]),
        ([Every(30), None], ["report"]),
        (Cron("0 9 * * *", name="morning"), ["morning"]),
        ([Every(30), Cron("0 9 * * *", tz="Europe/Paris")], ["report every 30 s", "report 0 9 * * * Europe/Paris"]),
        ([Named(), Shown(9)], ["mine", "report Shown(hour=9)"]),
    ],
)
def test_the_names_of_schedules(schedule: object, expected: list[str]) -> None:
    assert names(schedule=schedule) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": [Plain(), Every(30)]}, "needs a `name` attribute"),
        ({"schedule": [Every(30), Every(30)]}, "two schedules called 'report every 30 s'"),
        ({"schedule": "0 9 * * *"}, r"write Cron\('0 9 \* \* \*'\)"),
        ({"schedule": Every(30), "max_delay": 0}, "max_delay=0: expected at least 1 second"),
        ({"schedule": Every(30), "max_delay": timedelta(seconds=0.5)}, "expected at least 1 second"),
        ({"overlap": "skip"}, "add schedule="),
        ({"schedule": Every(30), "overlap": "never"}, "overlap='never': expected one of 'allow', 'skip', 'latest'"),
        ({"schedule": Every(30, args=(1, 2))}, "too many positional arguments"),
        ({"schedule": Every(30, options={"after": 5})}, "a schedule decides when its jobs start"),
        ({"schedule": Every(30, options={"key": "k"}), "overlap": "skip"}, 'key= and overlap="skip" cannot be combined'),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        names(**options)


@pytest.mark.parametrize("expression", ["*/5 * * * *", "0,1 9 * * *", "*/10 * * * * *"])
def test_jitter_is_less_than_the_time_between_two_times(expression: str) -> None:
    with pytest.raises(ValueError, match="jitter=300: expected less than the interval between two firings"):
        Cron(expression, jitter=300)
    assert Cron("0 9 * * *", jitter=300).jitter == 300.0


def test_the_jobs_of_a_schedule_have_the_tags_of_the_job_and_of_its_options() -> None:
    async def report() -> None: ...

    declared = any_job(name="report", tags=("reports",), schedule=[Every(30), Every(60, options={"tags": ("hourly",)})])(report)
    templates = [SchedulePlan.from_body(schedule.definition.body).envelopes_for(schedule.name, 0)[0] for schedule in declared.schedules]
    assert [template.tags for template in templates] == [("reports",), ("reports", "hourly")]
