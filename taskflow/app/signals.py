"""What a job raises to say what shall become of its run. Only the executor catches them and turns them into verdicts."""

from __future__ import annotations

from datetime import timedelta

from taskflow.app.options import seconds_of


class Signal(Exception):
    """Raised by a job to its worker."""


class Retry(Signal):
    """Try again, in `after` seconds (or a timedelta), else as the job's back-off says. Counts as a failed attempt."""

    def __init__(self, message: str = "the job asked for another attempt", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else seconds_of("after", after)


class Snooze(Signal):
    """Come back in `after` seconds (or a timedelta). Costs no attempt."""

    def __init__(self, message: str = "snoozed", *, after: float | timedelta) -> None:
        super().__init__(message)
        self.after = seconds_of("after", after)


class Discard(Signal):
    """Fail for good, now: another attempt would not help."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users hand in exceptions too


class Cancel(Signal):
    """End the job as CANCELLED."""

    def __init__(self, reason: str = "cancelled by the job itself") -> None:
        super().__init__(reason)
        self.reason = str(reason)  # users hand in exceptions too
