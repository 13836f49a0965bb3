"""Exceptions with which a job controls the outcome of its run. Only the executor catches them; it turns them into verdicts."""

from __future__ import annotations

from datetime import timedelta

from taskflow.app.options import seconds_of
from taskflow.model.errors import name_as_public


class Signal(Exception):
    """The base class of these exceptions."""


class Retry(Signal):
    """Try again after `after` seconds (or a timedelta); by default after the job's back-off. Counts as a failed attempt."""

    def __init__(self, message: str = "the job asked for another attempt", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else seconds_of("after", after)


class Snooze(Signal):
    """Run again after `after` seconds (or a timedelta). Uses no attempt."""

    def __init__(self, message: str = "snoozed", *, after: float | timedelta) -> None:
        super().__init__(message)
        self.after = seconds_of("after", after)


class Discard(Signal):
    """Fail for good, without another attempt."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users pass exceptions too


class Cancel(Signal):
    """End the job as CANCELLED."""

    def __init__(self, reason: str = "cancelled by the job itself") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users pass exceptions too


name_as_public(globals())
