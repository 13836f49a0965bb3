"""Calls that add no job, because another job stands for them: those with `throttle`, and those that `OnConflict.DEBOUNCE` merges.

A record remembers which job that is, until a time. Its id is the key of a throttled call, or the id of a call that was merged.
"""

from __future__ import annotations

from taskflow.broker import topics
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.job import Job, Sent, encode
from taskflow.broker.engine.records import READY, Flag, Kind
from taskflow.broker.engine.seam import Operation, Query, Ref, Scan, Snapshot
from taskflow.broker.protocol import Refused
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.job_schema import Counters
from taskflow.model.stored_values import LATEST


def refs_of(envelope: Envelope) -> list[Ref]:
    """Return the records that say which job stands for a call."""
    remembered = [envelope.key] if envelope.throttle else [envelope.id] if envelope.on_conflict is OnConflict.DEBOUNCE else []
    return [Ref(Kind.ANSWER, record_id) for record_id in remembered if record_id is not None]


def standing(draft: Draft, ref: Ref) -> bytes | None:
    """Return the id of the job that stands for a call, or None."""
    record = draft.plain(*ref)
    return None if record is None or record.header["until"] <= draft.now else record.header["job"]


def remember(draft: Draft, ref: Ref, job_id: bytes, seconds: float) -> None:
    """Let a job stand for calls, for so many seconds."""
    draft.put(Plain(ref, {"job": job_id, "until": min(LATEST, draft.now + to_microseconds(seconds))}))


def merge(draft: Draft, job: Job, envelope: Envelope) -> Refused:
    """Give a waiting job the arguments and options of a call, and move its due time. It keeps its id, its place and what awaits it."""
    header, fresh = job.header, Job.of_envelope(envelope, draft.now)
    job.sent = Sent(fresh.sent.extras, envelope.key, job.sent.joins)
    job.sent_body, job.new_content, job.entries = encode(job.sent), envelope.payload, {"tags": envelope.tags}
    job.set_flag(Flag.TAGGED, bool(envelope.tags))
    job.counters = Counters()
    header["expires_at"] = fresh.header.get("expires_at")
    if job.status != READY:
        latest = LATEST if envelope.at_most is None else header["created_at"] + to_microseconds(envelope.at_most)
        due_at = max(draft.now, min(draft.now + to_microseconds(envelope.after), latest))
        if due_at < header["due_at"]:
            draft.wake(topics.DUE)
        header["due_at"] = due_at
    draft.put(job)
    remember(draft, Ref(Kind.ANSWER, envelope.id), job.id, draft.rules.repeat_for)
    return Refused(envelope.id, job.id, "key")


def due(limit: int) -> Operation[list[Ref]]:
    """Return the first records that are not needed any more."""
    seen: Snapshot = yield Query(scans=(Scan("answers", max(0, limit), with_records=False),))
    return [entry.ref for entry in seen.scans[0] if entry.position[0] <= seen.now]
