"""Calls that add no job because an existing job stands in for them: throttled calls, and calls merged by `OnConflict.DEBOUNCE`.

A BURIED record points to that job until the record expires. Its id is the key shared by the throttled calls, or the merged call's id.
"""

from __future__ import annotations

from typing import Any

from taskflow.broker import topics
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import Job, Sent, State, encode
from taskflow.broker.engine.records import BURIED, READY, Flag, Kind
from taskflow.broker.engine.seam import Ref
from taskflow.broker.protocol import Refused
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope
from taskflow.model.job_schema import Counters
from taskflow.model.stored_values import LATEST


def throttled(draft: Draft, job: Job, throttle: float | None) -> bytes | None:
    """Return the id of the job that stands in for a throttled call, or None. If there is none, let `job` stand in for further calls for the
    next `throttle` seconds."""
    key = job.sent.key
    if not throttle or key is None:
        return None
    known = draft.job(key)
    if known is not None and known.header["fade_at"] > draft.now:
        return known.state.existing
    _remember(draft, key, job, throttle)
    return None


def merge(draft: Draft, job: Job, envelope: Envelope) -> Refused:
    """Give a waiting job the arguments, options and limits of a call. Unless the job is READY, also move its due time. The job keeps its id
    and the jobs that await it. Return the answer to the call."""
    header, fresh = job.header, Job.of_envelope(envelope, draft.now)
    job.sent, job.state.limits = Sent(fresh.sent.extras, envelope.key, job.sent.joins, envelope.limits), ()
    job.sent_body, job.new_content, job.entries = encode(job.sent), envelope.payload, {"tags": envelope.tags}
    for flag in (Flag.TAGGED, Flag.FAIR, Flag.LIMITED, Flag.MANY_GATES):
        job.set_flag(flag, bool(fresh.header["flags"] & flag))
    if job.has(Flag.PAUSED):  # the end of the pause must not start it before its new due time
        job.set_flag(Flag.PAUSED, False)
        job.state.place = job.state.waiting = None
    job.counters = Counters()
    header["expires_at"] = fresh.header.get("expires_at")
    if job.status != READY:
        latest = LATEST if envelope.at_most is None else header.get("created_at", draft.now) + to_microseconds(envelope.at_most)
        due_at = max(draft.now, min(draft.now + to_microseconds(envelope.after), latest))
        if due_at < header["due_at"]:
            draft.wake(topics.DUE)
        if header.get("gate") is not None or job.state.paid is not None:  # the job passes its gates once it's due, even if it has paid
            header["gate"] = header["since"] = job.state.paid = job.state.waiting = None
            draft.wake(topics.DUE)
        header["due_at"] = due_at
    draft.put(job)
    _remember(draft, envelope.id, job, draft.rules.repeat_for)
    return Refused(envelope.id, job.id, "key")


def _remember(draft: Draft, record_id: bytes, job: Job, seconds: float) -> None:
    """Store a BURIED record that lets `job` stand in for later calls. After `seconds` seconds, it expires like a dropped job's record."""
    known = draft.job(record_id)
    header: dict[str, Any] = {"status": BURIED, "flags": 0, "queue": job.queue, "job": job.header["job"], "due_at": draft.now}
    header |= {"ended_at": draft.now, "fade_at": min(LATEST, draft.now + to_microseconds(seconds))}
    record = known or Job(Ref(Kind.JOB, record_id), {}, Sent(), State())
    record.header |= header
    record.state.existing, record.sent_body, record.new_content = job.id, None, None
    draft.put(record)
