"""The table of `taskflow jobs`: its columns and details on terminals of two widths, and in a pipe."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow.cli.jobs import detail, job_table
from taskflow.model.record import Record, Status
from taskflow.model.verdict import Progress, RunError

REFUSED = "ConnectionError: smtp.example.com refused the message of order 1011"
UNKNOWN = "a worker that knows the job 'app.legacy.send_fax'; deploy the code that sent it"
DOWN = RunError("OSError", "the warehouse is down")


def a_record(status: Status, **fields: Any) -> Record:
    sent = datetime.now(UTC) - timedelta(minutes=17)
    given: dict[str, Any] = {"id": bytes(16), "job": "app.tasks.send_receipt", "queue": "mail", "max_attempts": 2, "created_at": sent}
    return Record(**given | {"status": status, "due_at": sent} | fields)


def shown(records: list[Record], width: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines on a terminal of this width, or in a pipe."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: width is not None)
    lines = list(job_table(records))
    assert width is None or max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (80, "ID STATUS QUEUE JOB AGE TRY"),
        (120, "ID STATUS QUEUE JOB AGE TRY"),
        (160, "ID STATUS QUEUE JOB AGE TRY DETAIL"),
        (None, "ID STATUS QUEUE JOB AGE TRY DETAIL"),
    ],
)
def test_a_reason_is_whole_and_no_column_is_empty(width: int | None, titles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heading, *lines = shown([a_record(Status.FAILED, reason=REFUSED)] * 2, width, monkeypatch)
    assert heading.split() == titles.split()
    beside = [line.endswith(f"  {REFUSED}") for line in lines]
    assert beside == [True] * 2 if "DETAIL" in titles else lines[1::2] == [f"    {REFUSED}"] * 2


def test_a_long_detail_takes_no_column_from_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    parked, plain = (a_record(Status.SCHEDULED, due_at=later, waiting_for=reason) for reason in (UNKNOWN, None))
    heading, first, reason, second = shown([parked, plain], 120, monkeypatch)
    assert heading.split() == ["ID", "STATUS", "QUEUE", "JOB", "AGE", "TRY", "DUE"]
    assert reason == f"    {UNKNOWN}"
    assert all("  1/2  in " in line for line in (first, second))


@pytest.mark.parametrize("width", [67, 80, 90])
def test_a_long_name_takes_no_column_that_stays(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heading, line = shown([a_record(Status.FAILED, job="app.accounts.tasks.send_monthly_statement", max_attempts=10)], width, monkeypatch)
    assert heading.split() == ["ID", "STATUS", "JOB", "AGE", "TRY"]
    assert line.endswith("t 17m 1/10")  # of statement


def test_the_percentage_and_the_bar_of_a_running_job_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [a_record(Status.RUNNING, progress=Progress(0.999, note)) for note in ("", "row 7")]
    assert shown(records, 67, monkeypatch)[2::2] == ["    [#########.] 100%", "    [#########.] 100%  row 7"]


@pytest.mark.parametrize(
    ("status", "errors", "expected"),
    [
        (Status.RUNNING, (DOWN,), "[#####.....] 50%  half way"),
        (Status.SCHEDULED, (DOWN,), "last error: OSError: the warehouse is down"),
        (Status.READY, (DOWN,), "last error: OSError: the warehouse is down"),
        (Status.SCHEDULED, (), ""),
        (Status.SUCCEEDED, (DOWN,), ""),
    ],
)
def test_progress_is_that_of_a_running_job(status: Status, errors: tuple[RunError, ...], expected: str) -> None:
    assert detail(a_record(status, progress=Progress(0.5, "half way"), errors=errors)) == expected
