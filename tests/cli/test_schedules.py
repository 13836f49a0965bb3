"""`taskflow schedules`: what it shows, and what it does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from taskflow import group, named
from taskflow.app.declared_schedules import plan_of, terms_of
from taskflow.broker.protocol import Broker
from taskflow.model.clock import microseconds_of
from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text
from taskflow.model.schedule import Amendment, Definition, Firing
from taskflow.model.schedule_plan import SchedulePlan, id_of
from taskflow.model.session import Beat, Session
from taskflow.model.timetable import CronTimes, EveryTimes, OwnTimes
from tests.cli.inprocess import URL, Cli
from tests.support.verdicts import succeeded

FRIDAY = microseconds_of(datetime(2027, 1, 15, 8, tzinfo=UTC))
DAY = 86_400_000_000
LAST = id_text(id_of("morning", FRIDAY))
PARIS = CronTimes("0 9 * * MON-FRI", "Europe/Paris")


def a_definition(name: str, times: Any, **terms: Any) -> Definition:
    template = Envelope(id=bytes(16), job=f"app.{name}", queue="mail", payload=b"\x01")
    return SchedulePlan(times=times, template=template, **terms).to_definition(name)


async def stock(broker: Broker) -> None:
    """Workers 1 to 3 declare "morning", which has fired, and "poll", which is paused. Worker 4 declared "gone". "ticks" was stored by a
    put."""
    for number in range(1, 5):
        session = Session(id=bytes([number]) * 16, name=f"web{number}:7", ttl=3600.0)
        await broker.register(session)
        names = ["gone"] if number == 4 else ["morning", "poll"]
        await broker.define([a_definition(name, PARIS, overlap="skip", max_delay=60.0) for name in names], session.id, 9.0 - number)
    await broker.beat(Beat(session=bytes([4]) * 16, leaving=True))
    await broker.admin.amend_schedule("poll", Amendment.PAUSE)
    await fire(broker, "morning", FRIDAY)
    await broker.define([a_definition("ticks", EveryTimes(30.0), jitter=5.0)])


async def fire(broker: Broker, name: str, at: int) -> None:
    """Fire a schedule for an instant; its next instant is three days later."""
    [offer] = (await broker.upkeep(100)).offers
    envelope = SchedulePlan.from_body(offer.body).envelopes_for(name, at)[0]
    first = Firing(name=name, digest=offer.digest, expected=None, next_at=at, offer_at=at)
    then = at + 3 * DAY
    await broker.fire([first, msgspec.structs.replace(first, expected=at, next_at=then, offer_at=then, envelopes=(envelope,), missed=2)])


@pytest.fixture(autouse=True)
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_what_a_schedule_sends(cli: Cli) -> None:
    flow = (group(named("app.count").bind(n=n) for n in range(1_000 - 1)) | named("app.total").bind())._templates()
    plan = plan_of(EveryTimes(30.0), flow, jitter=0.0, terms=terms_of("skip", "latest", None))
    cli.with_broker(lambda broker: broker.define([a_definition("single", PARIS), plan.to_definition("whole")]))
    said = cli("schedules", "list", "single", "whole").out
    assert re.findall("(?:job|flow)  .*", said) == [
        "job              app.single, queue mail",
        "flow             1,000 jobs: 999 app.count, app.total",
    ]


@pytest.fixture
def stored(cli: Cli) -> None:
    cli.with_broker(stock)


def by_name(cli: Cli) -> dict[str, Any]:
    return {schedule["name"]: schedule for schedule in cli.json("schedules")}


# --- list --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["schedules"], ["schedules", "list"]])
def test_a_row_says_when_a_schedule_fires_and_how_it_went(cli: Cli, stored: None, words: list[str]) -> None:
    heading, gone, morning, poll, ticks = cli(*words).out.splitlines()
    assert heading.split() == ["SCHEDULE", "WHEN", "NEXT", "STATE"]
    assert morning.startswith(
        "morning   0 9 * * MON-FRI Europe/Paris  Mon 2027-01-18 09:00 CET, here 03:00  last Fri 2027-01-15 09:00 CET, here 03:00"
    )
    assert morning.endswith("; its last job is ready; 1 fired, 2 missed; declared by web3:7 and 2 more")
    assert "asleep since " in gone
    assert ", because no running worker declares it; has not fired yet" in gone
    assert poll.split("  ")[-1] == "paused; has not fired yet; declared by web3:7 and 2 more"
    assert ticks.startswith("ticks     every 30 s ")
    assert ticks.endswith("  has not fired yet; put")


def test_a_schedule_given_by_name_is_shown_in_full(cli: Cli, stored: None) -> None:
    text = cli("schedules", "list", "morning", "ticks").out
    for line in (
        "name             morning",
        "when             0 9 * * MON-FRI Europe/Paris",
        "job              app.morning, queue mail",
        "next             Mon 2027-01-18 09:00 CET, here 03:00",
        "last             Fri 2027-01-15 09:00 CET, here 03:00, 0.000 s late; its last job is ready",
        f"last job         {LAST}",
        "counts           1 fired, 2 missed",
        "overlap          skip",
        "catch up         latest, at most 60 s late",
        "declared by      web3:7, web2:7, web1:7",
        "jitter           5 s",
        "declared by      no code: schedules.put() stored it",
        "next             no further time, or no worker has computed it yet",
    ):
        assert f"{line}\n" in text
    assert "gone" not in text
    assert "next             none\n" in cli("schedules", "list", "poll").out


def test_json_has_each_fact(cli: Cli, stored: None) -> None:
    found = by_name(cli)
    assert list(found) == ["gone", "morning", "poll", "ticks"]
    morning = found["morning"]
    assert (morning["next_at"], morning["last_at"]) == ("2027-01-18T09:00:00+01:00", "2027-01-15T09:00:00+01:00")
    assert (morning["last_id"], morning["last_status"], morning["fired"], morning["missed"]) == (LAST, "ready", 1, 2)
    assert morning["declarers"] == ["web3:7", "web2:7", "web1:7"]
    assert (found["poll"]["is_paused"], found["gone"]["asleep_since"] is None) == (True, False)
    assert [schedule["name"] for schedule in cli.json("schedules", "list", "ticks")] == ["ticks"]
    assert cli("schedules", "--json", "list", "ticks").out == cli("schedules", "list", "ticks", "--json").out


@pytest.mark.parametrize(("is_gone", "words"), [(False, "has succeeded"), (True, "is no longer kept")])
def test_the_outcome_is_that_of_the_last_job_while_it_is_kept(cli: Cli, stored: None, is_gone: bool, words: str) -> None:
    async def run(broker: Broker, keep_for: float) -> None:
        [lease] = await broker.claim(bytes([1]) * 16, 1, ["mail"], 1)
        await broker.settle([succeeded(lease, keep_for=keep_for)])

    cli.with_broker(lambda broker: run(broker, 0.0 if is_gone else 60.0))
    assert by_name(cli)["morning"]["last_status"] == (None if is_gone else "succeeded")
    assert f"; its last job {words}; " in cli("schedules").out


def test_an_unknown_schedule_is_not_found(cli: Cli, stored: None) -> None:
    said = cli("schedules", "list", "mornin", "ticks", code=4)
    assert said.err == "taskflow: there is no schedule called 'mornin'; did you mean morning?\n"
    assert "name             ticks\n" in said.out


def test_a_definition_that_cannot_be_read_is_shown_as_a_problem(cli: Cli, stored: None) -> None:
    cli.with_broker(lambda broker: broker.define([Definition("odd", bytes(16), b"\xff")]))
    row = next(row for row in cli("schedules").out.splitlines() if row.startswith("odd "))
    assert "problem: " in row
    for action in (["trigger"], ["backfill", "--from", "2027-01-01", "--to", "2027-02-01"]):
        said = cli("schedules", *action, "odd", code=1)
        assert said.err.startswith("taskflow: the stored definition of schedule 'odd' cannot be read: ")


def test_jobs_say_which_schedule_added_them(cli: Cli, stored: None) -> None:
    _, line = cli("jobs").out.splitlines()
    assert line.startswith(f"{LAST}  ready   mail   app.morning  ")
    assert line.endswith("  by schedule morning")
    assert "schedule         morning\nscheduled for    2027-01-15T09:00:00+01:00\n" in cli("jobs", LAST).out
    [job] = cli.jobs()
    assert (job["schedule"], job["scheduled_for"]) == ("morning", "2027-01-15T09:00:00+01:00")


# --- act ---------------------------------------------------------------------------------------------------------------


def test_schedules_are_paused_resumed_and_removed(cli: Cli, stored: None) -> None:
    assert cli("schedules", "pause", "ticks", "gone").out == "paused ticks\npaused gone\n"
    assert {name for name, schedule in by_name(cli).items() if schedule["is_paused"]} == {"ticks", "gone", "poll"}
    assert cli("schedules", "resume", "ticks", "poll", "ticks").out == "resumed ticks\nresumed poll\n"
    assert {name for name, schedule in by_name(cli).items() if schedule["is_paused"]} == {"gone"}
    assert cli("schedules", "remove", "ticks", "gone").out == "removed ticks\nremoved gone\n"
    assert list(by_name(cli)) == ["morning", "poll"]


def test_options_may_stand_before_the_action(cli: Cli, stored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_BROKER", "nonsense://")
    assert cli("schedules", "--broker", URL, "pause", "ticks").out == "paused ticks\n"
    assert cli("schedules", "resume", "poll", "--broker", URL).out == "resumed poll\n"


def test_a_schedule_that_is_paused_already_is_left_alone(cli: Cli, stored: None) -> None:
    """Nothing is added to the audit log either."""
    assert cli("schedules", "pause", "poll").out == "poll is paused already\n"
    assert cli("schedules", "resume", "ticks").out == "ticks is not paused\n"
    assert cli.json("schedules", "pause", "poll")["schedules"][0]["problem"] is None
    assert cli.json("audit") == []
    cli("schedules", "pause", "unknown", code=4)


def test_a_declared_schedule_is_not_removed(cli: Cli, stored: None) -> None:
    said = cli("schedules", "remove", "morning", "ticks", code=1)
    assert said.out == "removed ticks\n"
    assert said.err.startswith("taskflow: schedule 'morning' is declared by a running worker: ")


def test_a_schedule_is_triggered(cli: Cli, stored: None) -> None:
    before = by_name(cli)["ticks"]
    *_, job_id = cli("schedules", "trigger", "ticks").out.split()
    [job] = cli.json("jobs", job_id)
    assert (job["job"], job["schedule"], job["status"]) == ("app.ticks", "ticks", "ready")
    assert by_name(cli)["ticks"] == before


def test_a_trigger_that_a_live_job_excludes_adds_nothing(cli: Cli, stored: None) -> None:
    said = cli("schedules", "trigger", "morning", code=1)
    assert said.err == f"taskflow: schedule 'morning' was not triggered: its job {LAST} is live, and overlap= allows only one\n"
    assert len(cli.jobs()) == 1


SPAN = ("--from", "2027-01-14", "--to", "2027-01-19T09:00")


def test_a_backfill_adds_a_job_for_each_time_in_the_schedules_zone(cli: Cli, stored: None) -> None:
    span = "first Thu 2027-01-14 09:00 CET, here 03:00, last Mon 2027-01-18 09:00 CET, here 03:00"
    assert cli("schedules", "backfill", "morning", *SPAN, "--dry-run").out == f"would backfill morning with 3, {span}\n"
    assert len(cli.jobs()) == 1
    assert cli("schedules", "backfill", "morning", *SPAN).out == f"backfilled morning with 2, {span}; 1 existed already\n"
    assert {job["scheduled_for"][:10] for job in cli.jobs()} == {"2027-01-14", "2027-01-15", "2027-01-18"}
    saturday = ("--from", "2027-01-16T08:00Z", "--to", "2027-01-17")
    assert cli("schedules", "backfill", "morning", *saturday).out == "backfilled morning with 0\n"


def test_a_backfill_over_the_limit_adds_nothing(cli: Cli, stored: None) -> None:
    said = cli("schedules", "backfill", "morning", *SPAN, "--limit", "2", code=2)
    assert said.err == "taskflow: schedule 'morning' has more than 2 times in this span: raise --limit, or choose a shorter span\n"
    assert len(cli.jobs()) == 1


def test_only_code_backfills_times_that_code_computes(cli: Cli, stored: None) -> None:
    cli.with_broker(lambda broker: broker.define([a_definition("tides", OwnTimes("app.Tides"))]))
    said = cli("schedules", "backfill", "tides", *SPAN, code=2)
    assert said.err == (
        "taskflow: the times of schedule 'tides' are computed by app.Tides: call schedules.backfill() in code that imports it\n"
    )


@pytest.mark.parametrize("action", ["trigger", "pause", "resume", "remove", "backfill"])
def test_an_action_on_an_unknown_schedule_does_the_others(cli: Cli, stored: None, action: str) -> None:
    span = ("--from", "2027-01-14", "--to", "2027-01-14T00:10") if action == "backfill" else ()
    known = "poll" if action == "resume" else "ticks"
    said = cli("schedules", action, "tick", known, *span, code=4)
    assert said.err == "taskflow: there is no schedule called 'tick'; did you mean ticks?\n"
    assert f" {known}" in said.out


@pytest.mark.parametrize("name", ["red\x1b[31m", "two\nlines", "\x7f", "right\u202eleft"])
def test_a_schedule_with_control_characters_is_named_in_escaped_form(cli: Cli, name: str) -> None:
    """Another program has stored it. Without an escape, its name could not be an argument of a safe command."""
    plain = a_definition("plain", EveryTimes(30.0))
    cli.with_broker(lambda broker: broker.define([plain, plain._replace(name=name)]))
    shown = next(line.split("  ")[0] for line in cli("schedules").out.splitlines()[1:] if not line.startswith("plain"))
    assert shown.isprintable()
    for words in (["pause", shown], ["resume", name], ["pause", shown, "plain"], ["trigger", shown], ["remove", shown, "--yes"]):
        assert cli("schedules", *words).out.replace("\n", "").isprintable()
        if words[0] == "pause":
            [found] = cli.json("schedules", "list", shown)
            assert (found["name"], found["is_paused"]) == (name, True)
    assert [schedule["name"] for schedule in cli.json("schedules")] == ["plain"]
    assert cli.json("audit")[0]["names"] == [name]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nightly"], "taskflow schedules: unknown action 'nightly'; to show"),
        (["nightly"], "; to show one schedule: taskflow schedules list NAME\n"),
        (["pasue", "x"], "did you mean pause?"),
        (["--jsn"], "did you mean --json?"),
        (["backfill", "x", *SPAN, "--dry-rn"], "did you mean --dry-run?"),
        (["pause"], "the following arguments are required: NAME"),
        (["backfill", "x", "--from", "2027-01-14"], "the following arguments are required: --to"),
        (["backfill", "x", "--from", "monday", "--to", "2027-01-14"], "'monday' is not a time such as 2026-01-31T09:00"),
        (["backfill", "x", "--from", "0001-01-01", "--to", "2027-01-14"], "'0001-01-01' is not between the years 1970 and 2999"),
        (["backfill", "ticks", "--from", "2027-01-14", "--to", "2027-01-14"], "--to must be later than --from"),
        (["pause", "a\nb"], "schedule name 'a\\nb': expected 1 to 200 printable characters"),
    ],
)
def test_a_wrong_command_says_why_and_does_nothing(cli: Cli, stored: None, words: list[str], complaint: str) -> None:
    said = cli("schedules", *words, code=2)
    assert complaint in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


# --- next: a calculator, which asks no broker ---------------------------------------------------------------------------


BERLIN = ("--tz", "Europe/Berlin")


def following(cli: Cli, *words: str) -> list[str]:
    said = cli("schedules", "next", *words)
    assert (said.err, list(cli.folder.iterdir())) == ("", [])
    return said.out.splitlines()


def test_it_shows_the_times_of_an_interval(cli: Cli) -> None:
    assert following(cli, "--every", "1.5", "--from", "2026-01-30", "--count", "2", "--tz", "Asia/Tokyo") == [
        "Fri 2026-01-30 00:00 JST, here Thu 2026-01-29 10:00",
        "Fri 2026-01-30 00:00:01.500 JST, here Thu 2026-01-29 10:00:01.500",
    ]


SKIPPED = "Sun 2026-03-29 03:00 CEST, here Sat 2026-03-28 21:00"
REPEATED = "Sun 2026-10-25 02:30 CEST, here Sat 2026-10-24 20:30"


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("30 2 * * *", "2026-03-29", f"{SKIPPED}  (for 02:30, which the clock skips)"),
        ("30 2,3 * * *", "2026-03-29", f"{SKIPPED}  (for 02:30, which the clock skips)"),
        ("0 3 * * *", "2026-03-29", SKIPPED),
        ("0 4 * * *", "2026-03-29", "Sun 2026-03-29 04:00 CEST, here Sat 2026-03-28 22:00"),
        ("30 * * * *", "2026-03-29T02:00", "Sun 2026-03-29 03:30 CEST, here Sat 2026-03-28 21:30"),
        ("30 2 * * *", "2026-10-25", f"{REPEATED}  (the clock repeats 02:30; it fires only the first time)"),
        ("30 * * * *", "2026-10-25T02:00", f"{REPEATED}  (the first 02:30, which the clock repeats)"),
        (
            "30 * * * *",
            "2026-10-25T01:00Z",
            "Sun 2026-10-25 02:30 CET, here Sat 2026-10-24 21:30  (the second 02:30, which the clock repeats)",
        ),
    ],
)
def test_it_marks_times_at_a_change_of_the_clock(cli: Cli, expression: str, start: str, expected: str) -> None:
    assert following(cli, expression, *BERLIN, "--from", start, "--count", "1") == [expected]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["0 25 * * *"], "cron expression '0 25 * * *': hour '25' is invalid; the fields are minute hour day-of-month month day-of-week"),
        (["* * * *"], "cron expression '* * * *': expected the five fields"),
        (["0", "9", "*", "*", "*"], "takes one expression, got 5 arguments: put it in quotes"),
        (["0 0 30 2 *"], "day-of-month '30' is invalid"),
        (["@daily", "--tz", "Europe/Pris"], "there is no such time zone; did you mean 'Europe/Paris'?"),
        (["--every", "0.5"], "expected at least 1 second"),
        (["--every", "30", "@daily"], "takes either an expression in quotes"),
        ([], "takes either an expression in quotes"),
        (["@daily", "--from", "tomorrow"], "'tomorrow' is not a time such as 2026-01-31T09:00"),
        (["@daily", "--count", "0"], "'0' is not a whole number, 1 or more"),
        (["@daily", "--count", "10001"], "'10001' is more than the maximum of 10000"),
        (["@daily", "--cuont", "2"], "did you mean --count?"),
    ],
)
def test_a_wrong_argument_says_where(cli: Cli, words: list[str], complaint: str) -> None:
    said = cli("schedules", "next", *words, code=2)
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
