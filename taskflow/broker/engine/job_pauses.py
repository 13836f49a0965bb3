"""Pauses of jobs by name. Claims know only queues, so workers hand back jobs with paused names, and the engine parks these jobs as
SCHEDULED."""

from __future__ import annotations

from typing import Final

import msgspec

from taskflow.broker import topics
from taskflow.broker.engine.decisions import decide
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.moves import MOVE_SCANS, enter
from taskflow.broker.engine.records import SCHEDULED, Flag, Kind
from taskflow.broker.engine.seam import Operation, Query, Record, Ref, Scan, Snapshot
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.errors import BrokerRefused
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event, Transition

PAUSED: Final = Ref(Kind.MARK, b"paused jobs")
"""The record whose state lists the names of the paused jobs. Workers receive them in the answers to heartbeats."""

MAX_PAUSED: Final = 100
MAX_WOKEN: Final = 10_000
MAX_RELEASED: Final = 500

RECHECK: Final = 3_600.0
"""Seconds after which a parked job is claimed again, in case a resume was interrupted before it reached the job."""

_decode: Final = msgspec.msgpack.Decoder(list[str]).decode


def names_in(record: Record | Plain | None) -> tuple[str, ...]:
    """Return the job names in the record `PAUSED`, or an empty tuple if it doesn't exist or can't be decoded."""
    try:
        return tuple(_decode(record.state)) if record is not None and isinstance(record.state, bytes) else ()
    except msgspec.MsgspecError:
        return ()


def names() -> Operation[list[str]]:
    seen: Snapshot = yield Query((PAUSED,))
    return sorted(names_in(seen.records[PAUSED]))


def pause(job: str, rules: Rules, *, is_paused: bool) -> Operation[None]:
    """Begin or end the pause of a job name. Wake the workers, so that they send a heartbeat, whose answer contains the paused names. Raises
    BrokerRefused if `MAX_PAUSED` names are already paused."""

    def one(draft: Draft, job: str) -> None:
        before = {*names_in(draft.plain(*PAUSED))}
        after = before | {job} if is_paused else before - {job}
        if after == before:
            return
        if len(after) > MAX_PAUSED:
            raise BrokerRefused(f"{len(before)} jobs are paused, which is the maximum: resume one of them, or pause a queue")
        if after:
            draft.put(Plain(PAUSED, {}, msgspec.msgpack.encode(sorted(after))))
        else:
            draft.drop(PAUSED)
        for entry in draft.seen.scans[0]:
            draft.wake(topics.session(entry.ref.id))

    yield from decide([job], one, rules, [PAUSED], scans=(Scan("lapsing", MAX_WOKEN, with_records=False),))


def park(draft: Draft, job: Job, handed_back: Transition) -> Transition:
    """Return the transition for a job handed back because its name was paused: PARK, or `handed_back` if the pause is over by now."""
    if job.header["job"] not in names_in(draft.plain(*PAUSED)):
        job.header["due_at"] = job.header["due_at"] if job.state.place is None else job.state.place
        return handed_back
    if job.state.place is None:
        job.state.place = job.header["due_at"]
    recheck, waiting_for = draft.now + to_microseconds(RECHECK), wording.job_paused(job.header["job"])
    return Transition(Event.PARK, handed_back.counters, due_at=recheck, waiting_for=waiting_for, is_paused=True)


def release(job: str, rules: Rules) -> Operation[bool]:
    """Let up to `MAX_RELEASED` jobs that a pause has parked return to their old places. Return True if more may be parked."""
    seen: Snapshot = yield Query(scans=(Scan("parked", MAX_RELEASED, (job,), with_records=False),))
    ids = [entry.ref.id for entry in seen.scans[0]]
    refs = [Ref(Kind.JOB, job_id) for job_id in ids]
    yield from decide(ids, _unpark, rules, refs, scans=MOVE_SCANS)
    return len(ids) == MAX_RELEASED


def _unpark(draft: Draft, job_id: bytes) -> None:
    job = draft.job(job_id)
    if job is None or job.status != SCHEDULED or not job.has(Flag.PAUSED):
        return
    job.set_flag(Flag.PAUSED, False)
    job.header["due_at"] = draft.now if job.state.place is None else min(job.state.place, draft.now)
    job.state.waiting = job.state.place = None
    enter(draft, job, Event.DUE)
