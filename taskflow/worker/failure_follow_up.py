"""Sends the call that a job's `on_failure` names, with the settlement that ends the job as FAILED."""

from __future__ import annotations

import logging
from typing import Final

from taskflow.model.envelope import Envelope, Lease
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.verdict import Completed, Discarded, Failed, Verdict

log: Final = logging.getLogger("taskflow")
_new_id: Final = IdFactory()


def follow_ups_of(lease: Lease, verdict: Verdict) -> tuple[Envelope, ...]:
    """Return the envelopes to add when a run of a job with `on_failure` has this verdict. Never raises."""
    packed = lease.envelope.on_failure
    if isinstance(verdict, Completed):
        verdict = verdict.otherwise
    if packed is None or not isinstance(verdict, Failed | Discarded):
        return ()
    from taskflow.model.envelope import follow_up_of

    try:
        return (follow_up_of(packed, _new_id(), lease.envelope.id),)
    except ValueError as error:  # another program has changed the stored call
        log.error("job %s failed, but its on_failure call cannot be read, and is not sent: %s", id_text(lease.envelope.id), error)
        return ()
