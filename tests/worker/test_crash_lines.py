"""The log of a child process that crashes: one record, with what Python's fault handler has printed."""

from __future__ import annotations

import logging

import pytest

from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.ids import IdFactory
from taskflow.model.verdict import Failed, RunError, Succeeded, Verdict
from taskflow.worker.events import ChildPrinted, RunEnded
from taskflow.worker.log import log_event

FAULT = ("Fatal Python error: Segmentation fault", "", '  File "tasks.py", line 14 in crash')


def logged(caplog: pytest.LogCaptureFixture, verdict: Verdict) -> list[str]:
    """The messages after a child process has printed a line and a fault, and its run has ended so."""
    lease = Lease(envelope=Envelope(id=IdFactory()(), job="crash", payload=b""), epoch=1, claim=ClaimId(b"s" * 16, 1, 0), created_at=0)
    with caplog.at_level(logging.INFO, "taskflow.worker"):
        for line in ("before", *FAULT):
            log_event(ChildPrinted(lease, 7, "stderr", line))
        log_event(RunEnded(lease, verdict, 0.1))
    return [record.getMessage().partition("(attempt 1, queue default) ")[2] for record in caplog.records]


def test_a_crash_is_one_record(caplog: pytest.LogCaptureFixture) -> None:
    message = "the child process (pid 7) has died: SIGSEGV"
    died = RunError("taskflow.ChildDied", message, "\n".join((f"taskflow.ChildDied: {message}", *FAULT)), 1)
    assert logged(caplog, Failed(died)) == ["stderr: before", f"failed for good after 0.100 s: taskflow.ChildDied: {message}"]
    assert caplog.records[-1].exc_text == "\n".join(FAULT)


def test_the_lines_of_a_child_that_lives_on_are_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, Succeeded(b"")) == ["stderr: before", *(f"stderr: {line}" for line in FAULT), "succeeded after 0.100 s"]


def test_a_message_is_not_repeated_below_itself(caplog: pytest.LogCaptureFixture) -> None:
    died = RunError("taskflow.ChildDied", "exit code 3", "taskflow.ChildDied: exit code 3\n", 1)
    logged(caplog, Failed(died))
    assert not caplog.records[-1].exc_text
