"""Defines `Call`: a call to a job that has not been sent yet. Its arguments are already bound and encoded."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from taskflow.app.job_type import JobType
from taskflow.app.resolved_options import HasOptions
from taskflow.model.codec.signature import CallArguments
from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text

R_co = TypeVar("R_co", covariant=True)


class Call(Generic[R_co]):
    """A call to a job, made by `bind` and sent once by `enqueue`."""

    __slots__ = ("_named", "envelope", "given", "job_type", "raises_on_conflict")

    def __init__(
        self,
        job_type: JobType[Any] | None,
        envelope: Envelope,
        *,
        raises_on_conflict: bool,
        given: CallArguments | None = None,
        named: HasOptions | None = None,
    ) -> None:
        self.job_type = job_type
        self._named = named
        self.envelope = envelope
        self.raises_on_conflict = raises_on_conflict
        self.given = given

    def stamped(self, envelope: Envelope) -> Call[R_co]:
        """Return this call with an envelope that middleware has changed."""
        return Call(self.job_type, envelope, raises_on_conflict=self.raises_on_conflict, given=self.given)

    def _renewed(self) -> Envelope:
        """Return the envelope under the current settings. Those under which `bind` made it may have been others."""
        maker = self.job_type or self._named
        return self.envelope if maker is None else maker._renewed(self.envelope)

    @property
    def id(self) -> str:
        """The id that the job will have, as text. If a live job has the key, `enqueue` returns the handle of that job, with another id."""
        return id_text(self.envelope.id)

    @property
    def job(self) -> str:
        """The job's name."""
        return self.envelope.job

    @property
    def key(self) -> str | None:
        """The key, or None."""
        return self.envelope.key_text

    def __repr__(self) -> str:
        return f"<Call {self.job} {self.id}>"
