"""Exceptions that a job raises to control the outcome of its run. Only the executor catches them, and turns them into verdicts."""

from __future__ import annotations

from datetime import timedelta

from taskflow.app.option_checks import seconds_of
from taskflow.model.errors import name_as_public


class JobException(Exception):
    """The base class of the exceptions in this module."""


class Retry(JobException):
    """Raise this to retry the job after `after` seconds (or a timedelta); by default,
    after the job's back-off. It counts as a failed attempt."""

    def __init__(self, message: str = "the job asked for another attempt", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else seconds_of("after", after)


class Snooze(JobException):
    """Raise this to run the job again after `after` seconds (or a timedelta). It uses no attempt."""

    def __init__(self, message: str = "snoozed", *, after: float | timedelta) -> None:
        super().__init__(message)
        self.after = seconds_of("after", after)


class Discard(JobException):
    """Raise this to fail the job for good, without another attempt."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users pass exceptions too


class Cancel(JobException):
    """Raise this to end the job as CANCELLED."""

    def __init__(self, reason: str = "cancelled by the job itself") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users pass exceptions too


name_as_public(globals())
