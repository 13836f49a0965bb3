"""Defines `Call`: a call to a job that has not been sent yet. Its arguments are already bound and encoded."""

from __future__ import annotations

from typing import Generic, TypeVar

from taskflow.app.job_type import JobType
from taskflow.model.envelope import Envelope

R_co = TypeVar("R_co", covariant=True)


class Call(Generic[R_co]):
    """A call to a job, made by `bind` and sent once by `enqueue`. Its id becomes the job's id."""

    __slots__ = ("envelope", "job", "raises_on_conflict")

    def __init__(self, job: JobType[R_co], envelope: Envelope, *, raises_on_conflict: bool) -> None:
        self.job = job
        self.envelope = envelope
        self.raises_on_conflict = raises_on_conflict

    @property
    def key(self) -> str | None:
        """The key from `.options(key=...)`, or None."""
        return self.job.key

    def __repr__(self) -> str:
        return f"<Call {self.job.name}>"
