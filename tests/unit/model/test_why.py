"""How many jobs are before a ready one, and how long they take, in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from taskflow.model.record import Record, Status
from taskflow.model.session import Session, SessionRecord
from taskflow.model.verdict import RunError
from taskflow.model.why import Facts, reasons

NOW = datetime(2026, 11, 28, tzinfo=UTC)
IDLE = SessionRecord(session=Session(id=b"s" * 16, name="one"), registered_at=NOW, seconds_since_beat=0.0, leases=0, is_dying=False)
READY = Record(id=b"j" * 16, job="work", queue="mail", status=Status.READY, created_at=NOW, due_at=NOW - timedelta(seconds=5))


@pytest.mark.parametrize(
    ("place", "others", "rate", "told"),
    [
        (0, 5, 10.0, "and is the next one in queue mail"),
        (1, 5, 10.0, "behind 1 other in queue mail; at the present rate its turn comes in about 0 s"),
        (31, 500, 2.0, "behind 31 others in queue mail; at the present rate its turn comes in about 16 s"),
        (31, 500, 0.0, "behind 31 others in queue mail; none was claimed just now"),
        (None, 50_000, 100.0, "behind at least 1,000 others in queue mail; at the present rate its turn comes in about 10 s"),
        (None, 0, None, "and nothing is known to hold it up"),
    ],
)
def test_the_place_of_a_ready_job_is_told(place: int | None, others: int, rate: float | None, told: str) -> None:
    places = {number.to_bytes(16): number for number in range(min(others, 1_000))} | ({} if place is None else {READY.id: place})
    facts = Facts(now=NOW, counts={Status.READY: others + 1}, places=places, workers=(IDLE,), rate=rate)
    [reason] = reasons(READY, facts)
    assert reason.text == f"it has been ready for 5 s, {told}"


@pytest.mark.parametrize(
    ("attempt", "told"), [(2, "ValueError: no; this error is not retried"), (3, "its last attempt, 3 of 3, failed: ValueError: no")]
)
def test_an_error_that_is_not_retried_is_told_from_the_last_attempt(attempt: int, told: str) -> None:
    error = RunError("ValueError", "no", "", attempt)
    failed = msgspec.structs.replace(
        READY, status=Status.FAILED, failures=attempt, max_attempts=3, errors=(error,), reason="ValueError: no", ended_at=NOW
    )
    assert reasons(failed, Facts(now=NOW))[0].text == told
