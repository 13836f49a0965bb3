"""Parked jobs in the log: one line for a name and interval, however many there are."""

from __future__ import annotations

import logging
import time

import pytest

from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.verdict import Parked
from taskflow.worker.events import RunEnded
from taskflow.worker.log import PARK_INTERVAL, log_event


def test_parked_jobs_of_one_name_have_one_line_an_interval(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "taskflow.worker")

    def park(name: str) -> None:
        lease = Lease(envelope=Envelope(id=bytes(16), job=name, payload=b""), epoch=1, claim=ClaimId(bytes(16), 1, 0), created_at=0)
        log_event(RunEnded(lease, Parked(f"a worker that knows the job {name!r}", 5.0), 0.001))

    for _ in range(1_000):
        park("app.parked_a")
        park("app.parked_b")
    assert [line.partition(" ")[0] for line in caplog.messages] == ["app.parked_a", "app.parked_b"]
    assert "parked for 5.0 s: it waits for a worker that knows the job 'app.parked_a'" in caplog.messages[0]
    now += PARK_INTERVAL
    park("app.parked_a")
    assert len(caplog.messages) == 3
