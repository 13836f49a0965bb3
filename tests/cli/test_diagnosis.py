"""The words of `taskflow explain`: the place of a ready job, durations, times and cures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from taskflow.cli.explain import Facts, reasons
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status
from taskflow.model.session import Session, SessionRecord
from taskflow.model.verdict import RunError
from taskflow.model.wording import WAYS_OUT

NOW = datetime(2026, 11, 28, tzinfo=UTC)
IDLE = SessionRecord(session=Session(id=b"s" * 16, name="one"), registered_at=NOW, seconds_since_beat=0.0, leases=0, is_dying=False)
READY = Record(id=b"j" * 16, job="work", queue="mail", status=Status.READY, created_at=NOW, due_at=NOW - timedelta(seconds=5))


@pytest.mark.parametrize(
    ("place", "others", "rate", "told"),
    [
        (0, 5, 10.0, "and is the next one in queue mail"),
        (1, 5, 10.0, "behind 1 other in queue mail; at the present rate its turn comes in about 0s"),
        (31, 500, 2.0, "behind 31 others in queue mail; at the present rate its turn comes in about 16s"),
        (31, 500, 0.0, "behind 31 others in queue mail; none was claimed just now"),
        (None, 50_000, 100.0, "behind at least 1,000 others in queue mail; at the present rate its turn comes in about 10s"),
        (None, 0, None, "and nothing is known to hold it up"),
    ],
)
def test_the_place_of_a_ready_job_is_told(place: int | None, others: int, rate: float | None, told: str) -> None:
    places = {number.to_bytes(16): number for number in range(min(others, 1_000))} | ({} if place is None else {READY.id: place})
    facts = Facts(now=NOW, counts={Status.READY: others + 1}, positions=places, workers=(IDLE,), rate=rate)
    [reason] = reasons(READY, facts)
    assert reason.text == f"it has been ready for 5s, {told}"


@pytest.mark.parametrize(
    ("attempt", "told"), [(2, "ValueError: no; this error is not retried"), (3, "its last attempt, 3 of 3, failed: ValueError: no")]
)
def test_an_error_that_is_not_retried_is_told_from_the_last_attempt(attempt: int, told: str) -> None:
    error = RunError("ValueError", "no", "", attempt)
    failed = msgspec.structs.replace(
        READY, status=Status.FAILED, failures=attempt, max_attempts=3, errors=(error,), reason="ValueError: no", ended_at=NOW
    )
    assert reasons(failed, Facts(now=NOW))[0].text == told


def test_a_parked_job_is_told_its_cure_once() -> None:
    parked = msgspec.structs.replace(
        READY, status=Status.SCHEDULED, due_at=NOW + timedelta(seconds=62), waiting_for=f"a worker that knows the job 'work'; {WAYS_OUT}"
    )
    [reason] = reasons(parked, Facts(now=NOW))
    assert reason.text == "no worker could run it: it waits for a worker that knows the job 'work', and is tried again in 1m2s"
    assert reason.cure == f"deploy the code that sent it, or `taskflow cancel {id_text(READY.id)}` if that code was removed"


def test_a_missing_argument_is_told_without_the_jobs_name() -> None:
    waiting_for = f"a worker with other code: last: is a required argument and was not given (in a call of work); {WAYS_OUT}"
    parked = msgspec.structs.replace(READY, status=Status.SCHEDULED, due_at=NOW + timedelta(seconds=5), waiting_for=waiting_for)
    told = "it waits for a worker with other code: the argument `last` is required, and was not given, and is tried again in 5s"
    assert told in reasons(parked, Facts(now=NOW, workers=(IDLE,)))[0].text


def test_a_pause_is_the_cause_and_more_workers_are_no_cure() -> None:
    """Not even beside busy workers and other jobs, and also for a job that is due later or has expired."""
    busy = msgspec.structs.replace(IDLE, leases=IDLE.session.concurrency)
    facts = Facts(now=NOW, is_paused=True, counts={Status.READY: 9}, positions={READY.id: 3}, workers=(busy,), rate=0.0)
    later = msgspec.structs.replace(READY, status=Status.SCHEDULED, due_at=NOW + timedelta(seconds=62))
    expired = msgspec.structs.replace(READY, status=Status.CANCELLED, reason="expired", ended_at=NOW)
    for record, place in ((READY, 0), (later, 1), (expired, 0)):
        found = reasons(record, facts)
        assert "queue mail is paused" in found[place].text
        assert found[place].cure.startswith("`taskflow resume mail` ends the pause")
        assert not any("workers" in reason.cure for reason in found)
    assert reasons(READY, facts)[1].text == "it has been ready for 5s, behind 3 others in queue mail"


def test_a_reason_that_only_says_cancelled_is_left_out() -> None:
    for reason, told in ((None, "it was cancelled"), ("cancelled", "it was cancelled"), ("duplicate", "it was cancelled: duplicate")):
        record = msgspec.structs.replace(READY, status=Status.CANCELLED, reason=reason, ended_at=NOW)
        assert reasons(record, Facts(now=NOW))[0].text == told
