"""Arrivals: the decisions that callers' transactions leave to the engine, which makes them after the commit.

A caller's transaction writes no record that other clients also write, such as the record of a key. It adds a job with a key as HELD, with
the flag ARRIVING. If it ends a run, it leaves the consequences as an INBOX record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflow.broker.engine import answers, flows, moves
from taskflow.broker.engine.decisions import decide
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import decode_sent
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import BURIED, HELD, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import Entry, Operation, Query, Record, Ref, Scan, Snapshot
from taskflow.model import transitions, wording
from taskflow.model.envelope import OnConflict
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event
from taskflow.model.verdict import Succeeded

FLAG_BYTES: Final = 2


def scans(limit: int) -> tuple[Scan, Scan]:
    """Return the scans that find arrivals. Ends come first, because they free keys."""
    return Scan("inbox", limit), Scan("arriving", limit, with_records=False)


def take(found: Sequence[Entry], rules: Rules) -> Operation[list[bool]]:
    """Handle the arrivals that `scans` found. For each, return True, or False if another program's open transaction blocks it."""
    refs = [entry.ref for entry in found]
    jobs = [Ref(Kind.JOB, ref.id) for ref in refs]
    in_flows = [
        Ref(Kind.JOB, each.ref.id) for each in found if each.record is not None and decode_sent(each.record.sent).member is not None
    ]
    results = dict[Ref, Record | None]()
    if in_flows:
        seen: Snapshot = yield Query(tuple(in_flows), with_content=True)
        results = seen.records

    def one(draft: Draft, ref: Ref) -> bool:
        if ref.kind == Kind.INBOX:
            _settle(draft, ref, results.get(Ref(Kind.JOB, ref.id)))
        else:
            _admit(draft, ref)
        return True

    return (yield from decide(refs, one, rules, {*refs, *jobs}, scans=MOVE_SCANS, locked=False))


def _admit(draft: Draft, ref: Ref) -> None:
    """Give an arrived job its key, and release it unless it must wait for other jobs. Cancel it instead if it was replaced or throttled, or
    if a live job has its key and keeps it."""
    job = draft.job(ref.id)
    if job is None or not job.has(Flag.ARRIVING):
        return
    if job.status != HELD:  # another program has changed it
        job.set_flag(Flag.ARRIVING | Flag.BEHIND, False)
        draft.put(job)
        return
    if job.state.replaced is not None:
        moves.finish(draft, job, Event.REPLACE, Status.CANCELLED, wording.replaced_by(job.state.replaced))
        return
    on_conflict = OnConflict.REPLACE if job.state.replaces else OnConflict.KEEP
    job.set_flag(Flag.ARRIVING | Flag.BEHIND, False)
    job.state.replaces, job.state.waiting = False, None
    waiting, running = moves.holders(draft, job.sent.key)
    holder = transitions.refused_for(waiting, running, on_conflict)
    if (holder_id := answers.throttled(draft, job, job.extra("throttle")) if holder is None else holder.id) is not None:
        moves.finish(draft, job, Event.CANCEL, Status.CANCELLED, wording.key_held_by(holder_id))
        return
    moves.take_key(draft, job, waiting, running)
    if job.header["awaits"] > 0 or job.has(Flag.BEHIND):
        draft.put(job)
    else:
        moves.release(draft, job)


def _settle(draft: Draft, ref: Ref, settled: Record | None) -> None:
    """Carry out the consequences of a successful run. The job itself may have been dropped by now. `settled` is the job's record with its
    result, or None if the job belongs to no flow.

    The INBOX record has the same `sent` as the job. Its state consists of the job's flags at the end of the run and the progress. The
    transaction has cleared AWAITED in the stored job, so nothing else releases the jobs that await it.
    """
    if draft.plain(*ref) is None:
        return
    stored = draft.seen.records[ref]
    assert stored is not None
    sent, state = decode_sent(stored.sent), stored.state or b""
    job = draft.job(ref.id)
    if job is not None and job.status == SUCCEEDED:
        job.counters = transitions.apply_verdict(job.counters, Succeeded(b""), draft.rules, draft.now).counters
        job.state.reason = job.state.waiting = None
        if progress := state[FLAG_BYTES:]:
            job.set_progress(progress)
        draft.put(job)
    moves.release_key(draft, ref.id, sent.key)
    moves.free_slots(draft, sent.limits if job is None or job.status == BURIED else job.limits)
    if settled is not None and settled.content is not None and job is not None and job.status == SUCCEEDED:
        job.new_content = settled.content
        flows.end(draft, job, None)
    elif int.from_bytes(state[:FLAG_BYTES], "big") & Flag.AWAITED:
        moves.release_joined(draft, sent.joined)
    draft.drop(ref)
