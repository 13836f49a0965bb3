"""The life of a job as lines of text, each at its time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow.model import wording
from taskflow.model.clock import microseconds_of
from taskflow.model.record import Record, Status, timeline
from taskflow.model.verdict import RunEnding, RunError

SENT = datetime(2026, 11, 28, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return SENT + timedelta(seconds=seconds)


def failure(started: float, ended: float, attempt: int = 1, ending: RunEnding = RunEnding.FAILED) -> RunError:
    error = RunError("ValueError", "no user", attempt=attempt, ending=ending)
    return error.of_run("web:1", microseconds_of(at(started)), microseconds_of(at(ended)))


def told(status: Status, **fields: Any) -> list[tuple[float, str]]:
    record = Record(**{"id": b"j" * 16, "job": "work", "status": status, "created_at": SENT, "due_at": SENT, **fields})
    return [((moment.at - SENT).total_seconds(), moment.text) for moment in timeline(record, at(100))]


FAILED_ONCE = [(0, "sent"), (1, "attempt 1 started on web:1"), (3, "attempt 1 failed: ValueError: no user")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": Status.READY}, [(0, "sent, and ready at once"), (100, "still waits for a worker")]),
        ({"status": Status.HELD, "waiting_for": "job X"}, [(0, "sent, and ready at once"), (100, "still waits for job X")]),
        (
            {"status": Status.SCHEDULED, "waiting_for": "limit api of 7"},
            [(0, "sent; waits for limit api of 7"), (100, "still waits for limit api of 7")],
        ),
        (
            {"status": Status.SCHEDULED, "due_at": at(200), "expires_at": at(300)},
            [(0, "sent"), (200, "attempt 1 is due"), (300, "expires")],
        ),
        (
            {"status": Status.RUNNING, "due_at": at(5), "claimed_at": at(6), "worker": "web:2"},
            [(0, "sent"), (5, "ready"), (6, "attempt 1 started on web:2"), (100, "still running")],
        ),
        (
            {"status": Status.SCHEDULED, "due_at": at(200), "started_at": at(1), "failures": 1, "errors": (failure(1, 3),)},
            [*FAILED_ONCE, (200, "attempt 2 is due")],
        ),
        (
            {"status": Status.READY, "due_at": at(50), "started_at": at(1), "claimed_at": at(1), "failures": 1, "errors": (failure(1, 3),)},
            [*FAILED_ONCE, (50, "ready"), (100, "still waits for a worker")],
        ),
        (
            {"status": Status.FAILED, "started_at": at(1), "ended_at": at(3), "failures": 1, "errors": (failure(1, 3),),
             "reason": "ValueError: no user"},
            FAILED_ONCE,
        ),
        (
            {"status": Status.FAILED, "started_at": at(1), "ended_at": at(3), "failures": 1, "reason": "ValueError: no user",
             "errors": (failure(1, 3, ending=RunEnding.TIMED_OUT),)},
            [*FAILED_ONCE[:2], (3, "attempt 1 timed out: ValueError: no user"), (3, "failed")],
        ),
        (
            {"status": Status.CANCELLED, "due_at": at(4), "started_at": at(1), "ended_at": at(9), "failures": 3,
             "errors": (failure(1, 3, 3),), "reason": "expired"},
            [(0, "sent"), (0, "2 earlier failures are no longer kept"), (1, "attempt 3 started on web:1"),
             (3, "attempt 3 failed: ValueError: no user"), (9, "cancelled: expired")],
        ),
        (
            {"status": Status.SUCCEEDED, "due_at": at(4), "started_at": at(5), "ended_at": at(9), "worker": "web:2",
             "errors": (failure(1, 3, ending=RunEnding.CRASHED),)},
            [(0, "sent"), (1, "attempt 1 started on web:1"), (3, "attempt 1: no user"), (4, "ready"), (5, "attempt 1 started on web:2"),
             (9, "succeeded")],
        ),
        (
            {"status": Status.SCHEDULED, "due_at": at(200), "started_at": at(5), "worker": "w", "waiting_for": wording.OTHER_CODE % "E"},
            [(0, "sent"), (100, "parked: no worker can run it. It waits for a worker with other code: E"), (200, "attempt 1 is due")],
        ),
        (
            {"status": Status.SCHEDULED, "waiting_for": wording.waits_for_resume("mail")},
            [(0, "sent, and ready at once"), (100, "still waits for queue mail, which is paused")],
        ),
        (
            {"status": Status.CANCELLED, "due_at": at(200), "started_at": at(5), "ended_at": at(9), "worker": "web:2"},
            [(0, "sent"), (5, "attempt 1 started on web:2"), (9, "cancelled")],
        ),
    ],
    ids=["ready", "held", "at a limit", "scheduled", "running", "retry", "again", "failed", "timed out", "cancelled", "succeeded",
         "parked", "in a paused queue", "snoozed"],
)  # fmt: skip
def test_a_job_has_a_time_line(fields: dict[str, Any], expected: list[tuple[float, str]]) -> None:
    assert told(**fields) == expected
