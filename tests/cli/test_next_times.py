"""`taskflow schedules next`: a calculator, which asks no broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.cli.inprocess import Cli

BERLIN = ("--tz", "Europe/Berlin")


@pytest.fixture(autouse=True)
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    monkeypatch.setenv("TASKFLOW_BROKER", "nonsense://")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def following(cli: Cli, *words: str) -> list[str]:
    said = cli("schedules", "next", *words)
    assert (said.err, list(cli.folder.iterdir())) == ("", [])
    return said.out.splitlines()


def test_it_shows_times_in_the_zone_and_here(cli: Cli) -> None:
    assert following(cli, "0 9 * * MON-FRI", "--tz", "Europe/Paris", "--from", "2026-01-30T09:00") == [
        "Fri 2026-01-30 09:00 CET, here 03:00",
        "Mon 2026-02-02 09:00 CET, here 03:00",
        "Tue 2026-02-03 09:00 CET, here 03:00",
        "Wed 2026-02-04 09:00 CET, here 03:00",
        "Thu 2026-02-05 09:00 CET, here 03:00",
    ]
    assert following(cli, "@daily", "--tz", "America/New_York", "--from", "2026-01-30", "--count", "1") == ["Fri 2026-01-30 00:00 EST"]
    assert following(cli, "30 0 12 * * *", "--from", "2026-01-30T13:00+01:00", "--count", "1") == [
        "Fri 2026-01-30 12:00:30 UTC, here 07:00:30"
    ]
    assert following(cli, "0 2 * * *", "--from", "2026-01-30", "--count", "1") == ["Fri 2026-01-30 02:00 UTC, here Thu 2026-01-29 21:00"]


def test_it_shows_the_times_of_an_interval(cli: Cli) -> None:
    assert following(cli, "--every", "1.5", "--from", "2026-01-30", "--count", "2", "--tz", "Asia/Tokyo") == [
        "Fri 2026-01-30 00:00 JST, here Thu 2026-01-29 10:00",
        "Fri 2026-01-30 00:00:01.500 JST, here Thu 2026-01-29 10:00:01.500",
    ]


def test_it_begins_now(cli: Cli) -> None:
    [found] = cli.json("schedules", "next", "* * * * * *", "--count", "1")
    assert 0 < (datetime.fromisoformat(found["at"]) - datetime.now(UTC)).total_seconds() + 1 < 5
    assert found["here"] == datetime.fromisoformat(found["at"]).astimezone().isoformat()


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


def test_json_has_the_same_facts(cli: Cli) -> None:
    assert cli.json("schedules", "next", "30 2 * * *", *BERLIN, "--from", "2026-03-29", "--count", "1") == [
        {"at": "2026-03-29T03:00:00+02:00", "here": "2026-03-28T21:00:00-04:00", "note": "for 02:30, which the clock skips"}
    ]


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
        (["@daily", "--count", "10001"], "'10001' is more than 10000"),
        (["@daily", "--cuont", "2"], "did you mean --count?"),
    ],
)
def test_a_wrong_argument_says_where(cli: Cli, words: list[str], complaint: str) -> None:
    said = cli("schedules", "next", *words, code=2)
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
