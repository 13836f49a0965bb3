"""Parked jobs in the log: one line for a name and interval, however many there are."""

from __future__ import annotations

import logging
import time

import pytest

from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.verdict import Parked
from taskflow.worker import log as log_module
from taskflow.worker.events import RunEnded
from taskflow.worker.log import PARK_INTERVAL, ParkLog, log_event


def parked(name: str, number: int = 0) -> RunEnded:
    envelope = Envelope(id=number.to_bytes(16), job=name, payload=b"")
    lease = Lease(envelope=envelope, epoch=1, claim=ClaimId(bytes(16), 1, number), created_at=0)
    return RunEnded(lease, Parked(f"a worker that knows the job {name!r}", 5.0), 0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[float]:
    """The time by which a new log of parked runs goes: its one element."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log_module, "_parks", ParkLog())
    caplog.set_level(logging.INFO, "taskflow.worker")
    return now


def test_twenty_thousand_parked_jobs_of_one_name_have_one_line_an_interval(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20_000):
        log_event(parked("app.newer", number))
    [line] = caplog.messages
    assert line.startswith("app.newer ")
    assert "parked for 5.0 s: it waits for a worker that knows the job 'app.newer'" in line

    clock[0] += PARK_INTERVAL
    log_event(parked("app.newer"))
    assert len(caplog.messages) == 2
    assert "(19,999 more were parked since the last such line)" in caplog.messages[1]


def test_each_name_has_a_line(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    for name in ("app.a", "app.b", "app.a", "app.b"):
        log_event(parked(name))
    assert [line.partition(" ")[0] for line in caplog.messages] == ["app.a", "app.b"]


def test_a_name_is_told_again_after_the_interval() -> None:
    parks = ParkLog()
    assert [parks.count("a", now) for now in (0.0, 1.0, PARK_INTERVAL - 0.1, PARK_INTERVAL, PARK_INTERVAL + 1.0, 3 * PARK_INTERVAL)] == [
        0,
        None,
        None,
        2,
        None,
        1,
    ]
