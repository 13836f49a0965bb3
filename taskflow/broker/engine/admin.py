"""The operations of the admin interface, for the command line and the dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from taskflow.broker.admin import EXAMINED, FailureGroupRecord, Metrics, QueueInfo, Redone, View
from taskflow.broker.engine import flows, gates, moves, pages, turns
from taskflow.broker.engine.decisions import MAX_LOOKED_AT, decide, each_portion, follow, give_back, portions
from taskflow.broker.engine.draft import Draft, Left, Plain, decide as decide_once
from taskflow.broker.engine.job import Job, text_bytes
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import HELD, READY, SUCCEEDED, Kind
from taskflow.broker.engine.seam import NOW, Entry, Operation, Query, Ref, Scan, Snapshot
from taskflow.broker.engine.session import OUTAGE, lapse, outages_of, record_of_session
from taskflow.broker.engine.sessions import PULSE, pulse_in
from taskflow.broker.paging import Position, ScanRequest
from taskflow.broker.protocol import PURGED_TTL
from taskflow.model import wording
from taskflow.model.audit import Action, ActionRecord, action_record_of, pack_action
from taskflow.model.clock import to_seconds
from taskflow.model.fingerprint import FINGERPRINT_BYTES, fingerprint_in
from taskflow.model.flow import MAX_MEMBERS, numbered
from taskflow.model.ids import ID_BYTES
from taskflow.model.record import BY_CODE, CODES, ENDED, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import Event

MAX_SESSIONS: Final = 100_000
MAX_PAUSED: Final = 100_000
MAX_ARRIVING: Final = 10_000
MAX_DUE: Final = 100
GIVEN_BACK_AT_ONCE: Final = 100
MAX_FAILED: Final = 1_000_000
FLOW_ENTRIES: Final = 500
"""The number of jobs that are read at once to find the newest flows."""


# --- queues ---------------------------------------------------------------------------------------------------

_DUE: Final = ("due", "to_admit")
"""The indexes that contain, among others, the HELD jobs that no longer await anything. The next upkeep releases these jobs."""


def queues() -> Operation[list[QueueInfo]]:
    seen: Snapshot = yield Query(
        scans=(
            *(Scan("paused", MAX_PAUSED, with_records=False), Scan("arriving", MAX_ARRIVING), Scan("fair", 1, with_records=False)),
            *(Scan(name, MAX_DUE) for name in _DUE),
        ),
        groups=(("status", ()), ("ready", ()), ("scheduled", ())),
        with_totals=True,
    )
    counts = {(group.prefix[0], group.prefix[1]): group.size for group in seen.groups[0]}
    oldest = dict[str, int]()
    held = [entry for entries in seen.scans[3:] for entry in entries if entry.position[0] <= seen.now]
    for record in [entry.record for entry in (*seen.scans[1], *held)]:  # each needs a worker now, like a READY job
        if record is None or record.header["status"] != HELD:
            continue
        queue, created_at = record.header["queue"], record.header["created_at"]
        counts[queue, HELD] = max(0, counts.get((queue, HELD), 0) - 1)
        counts[queue, READY] = counts.get((queue, READY), 0) + 1
        oldest[queue] = min(created_at, oldest.get(queue, created_at))
    ready = [group.first for group in seen.groups[1] if group.first is not None]
    for queue, due_at in (yield from _ready_since(ready)) if seen.scans[2] else [(position[0], position[2]) for position in ready]:
        oldest[queue] = min(due_at, oldest.get(queue, due_at))
    next_due = {group.prefix[0]: group.first[1] for group in seen.groups[2] if group.first is not None}
    paused = {entry.ref.id.decode(errors="backslashreplace") for entry in seen.scans[0]}
    return [
        QueueInfo(
            name=name,
            is_paused=name in paused,
            counts={status: counts.get((name, CODES[status]), 0) for status in Status},
            oldest_ready_for=to_seconds(seen.now - oldest[name]) if name in oldest else None,
            next_due_in=to_seconds(next_due[name] - seen.now) if name in next_due else None,
        )
        for name in sorted({queue for queue, _ in (*seen.totals, *counts)} | paused)
    ]


def _ready_since(firsts: Sequence[tuple[Any, ...]]) -> Operation[list[tuple[str, int]]]:
    """Return pairs of a queue and the time when one of its oldest jobs became READY; a queue may have several. The `due_at` of a tenant's
    job is a place in a line, so the times of tenants' jobs come from the index `fair_since`."""
    queues = list(dict.fromkeys(queue for queue, *_ in firsts))
    lines = [turns.first_of(turns.line_of(queue, -rank)) for queue, rank, *_ in firsts]
    seen: Snapshot = yield Query(scans=(*lines, *(Scan("fair_since", 1, (queue,), with_records=False) for queue in queues)))
    fair = {entries[0].position for entries in seen.scans if entries}
    times = [(position[0], position[2]) for position in firsts if position not in fair]
    return times + [(entries[0].position[0], entries[0].position[1]) for entries in seen.scans[len(lines) :] if entries]


def pause(queue: str, rules: Rules, *, is_paused: bool) -> Operation[None]:
    ref = Ref(Kind.QUEUE, queue.encode())

    def one(draft: Draft, ref: Ref) -> None:
        known = draft.plain(*ref)
        if is_paused and known is None:
            draft.put(Plain(ref, {"is_paused": 1}))
        elif not is_paused and known is not None:
            draft.drop(ref)
        gates.pause(draft, queue, is_paused=is_paused)

    yield from decide([ref], one, rules, [ref, *gates.refs_of([gates.of_pause(queue)])])
    while is_paused and (yield from give_back(queue, GIVEN_BACK_AT_ONCE, rules)) == GIVEN_BACK_AT_ONCE:
        pass


def workers(rules: Rules) -> Operation[list[SessionRecord]]:
    seen: Snapshot = yield Query(
        (OUTAGE,),
        (PULSE, Scan("lapsing", MAX_SESSIONS), Scan("dying", MAX_SESSIONS)),
        (("leases", ()),),
    )
    draft = Draft(seen, rules)
    outages, pulse = outages_of(draft), pulse_in(seen.scans[0], seen.steady)
    leases = Counter({group.prefix[0]: group.size for group in seen.groups[0]})
    found = [entry.record for entries in seen.scans[1:] for entry in entries if entry.record is not None]
    records = list[SessionRecord]()
    for record in found:
        session, held = Plain(record.ref, dict(record.header), record.state), leases[record.ref.id]
        is_living = session.header["dead_at"] is None
        if is_living or held:
            lapses_at, _ = lapse(session, outages, pulse, draft)
            beat_at = lapses_at - session.header["ttl"] - 1 if is_living else session.header["beat_at"]
            if not lapses_at:  # silent since the machine rebooted
                beat_at = 0
            records.append(record_of_session(session, held, draft.steady - beat_at))
    return sorted(records, key=lambda record: (record.session.name, record.session.id))


def metrics() -> Operation[Metrics]:
    seen: Snapshot = yield Query(with_totals=True)
    totals: dict[str, dict[str, int]] = {}
    for (queue, event), count in seen.totals.items():
        totals.setdefault(queue, {})[str(event)] = count
    return Metrics(totals=totals)


# --- failures -------------------------------------------------------------------------------------------------


def failure_groups(queue: str | None, job: str | None, limit: int) -> Operation[list[FailureGroupRecord]]:
    from taskflow.broker.failure_parts import FailurePart, failure_groups_of

    seen: Snapshot = yield Query(groups=(("causes", ()),))
    parts = list[FailurePart]()
    for group in seen.groups[0]:
        cause, name, of_queue = group.prefix
        if queue in (None, of_queue) and job in (None, name) and group.first is not None and group.last is not None:
            parts.append(FailurePart(cause, name, group.size, group.first[3], group.last[3], group.last[5]))
    return failure_groups_of(parts, limit)


def failed_ids(fingerprint: bytes) -> Operation[list[bytes]]:
    last = (fingerprint + b"\xff" * 400,)
    seen: Snapshot = yield Query(scans=(Scan("causes", MAX_FAILED, after=(fingerprint,), until=last, with_records=False),))
    return [entry.ref.id for entry in seen.scans[0] if fingerprint_in(entry.position[0][: FINGERPRINT_BYTES + 1]) == fingerprint]


def retry(ids: Sequence[bytes], rules: Rules) -> Operation[list[Redone]]:
    refs, members = [Ref(Kind.JOB, job_id) for job_id in ids], set[Ref]()

    def one(draft: Draft, job_id: bytes) -> Redone:
        job = draft.job(job_id)
        if job is None or not job.is_kept(draft.now):
            return Redone.UNKNOWN
        if job.is_live:
            return Redone.LIVE
        if job.status == SUCCEEDED:
            return Redone.SUCCEEDED
        if any(moves.holders(draft, job.sent.key)):
            return Redone.KEY_TAKEN
        if job.sent.member is not None:
            flows.redo(draft, job, acts=True)
            members.add(job.ref)
        moves.redo(draft, job)
        if job.sent.key is not None:
            draft.put(Plain(Ref(Kind.KEY, job.sent.key), {"holder": job.id, "next": None}))
        return Redone.OK

    redone, left, again = list[Redone](), Left(), set[Ref]()
    for portion in portions(refs):
        redone += yield from decide_once([ref.id for ref in portion], one, rules, Query(portion, MOVE_SCANS), left=left)
    yield from follow(left, rules, most=MAX_LOOKED_AT)
    for portion in portions([*members]):
        seen: Snapshot = yield Query(portion)
        again.update(ref for ref, record in seen.records.items() if flows.was_cancelled_by_flow(record))
    return [Redone.CANCELLED_AGAIN if answer is Redone.OK and ref in again else answer for ref, answer in zip(refs, redone, strict=True)]


# --- flows ----------------------------------------------------------------------------------------------------


def flow(flow_id: bytes, first: int, limit: int) -> Operation[list[Record]]:
    seen: Snapshot = yield Query(scans=(flows.whole(flow_id, first, limit),))
    jobs = [Job.of_record(entry.record) for entry in seen.scans[0] if entry.record is not None]
    return [job.to_record() for job in jobs if job.is_kept(seen.now)]


def newest_flows(limit: int) -> Operation[list[Record]]:
    last, after, known = dict[bytes, Ref](), None, -1
    while known < len(last) < limit:
        known = len(last)
        seen: Snapshot = yield Query(scans=(Scan("flow", FLOW_ENTRIES, after=after, backwards=True, with_records=False),))
        for entry in seen.scans[0]:
            last.setdefault(entry.position[0][:ID_BYTES], entry.ref)
        if len(seen.scans[0]) < FLOW_ENTRIES:
            break
        after = (numbered([*last][-1], 0),)  # skip the rest of this flow
    refs = tuple(last.values())[:limit]
    found: Snapshot = yield Query(refs)
    jobs = [Job.of_record(record) for ref in refs if (record := found.records[ref]) is not None]
    return [job.to_record() for job in jobs if job.is_kept(found.now)]


def cancel_flow(flow_id: bytes, rules: Rules) -> Operation[int]:
    # counted before, because upkeep of a worker may take part in the action
    live = list[Entry]()
    yield from each_portion(flows.alive(flow_id), live.extend)
    action = flows.Action(flows.CANCEL, flow_id, cause=flow_id, reason=wording.CANCELLED)
    action_id = numbered(flow_id, MAX_MEMBERS)
    yield from decide([action_id], partial(flows.put, action=action), rules, [Ref(Kind.FLOW, action_id)], most=MAX_LOOKED_AT)
    return len(live)


def run_now(ids: Sequence[bytes], rules: Rules) -> Operation[list[Status | None]]:
    return (yield from decide(ids, _run_now, rules, [Ref(Kind.JOB, job_id) for job_id in ids], scans=MOVE_SCANS))


def _run_now(draft: Draft, job_id: bytes) -> Status | None:
    job = draft.job(job_id)
    if job is None or not job.is_kept(draft.now):
        return None
    found = BY_CODE[job.status]
    if found is Status.SCHEDULED and job.header["gate"] is None and job.state.paid is None:  # no limit has set its due time
        job.header["due_at"] = NOW
        moves.enter(draft, job, Event.DUE)
    return found


# --- dropping jobs --------------------------------------------------------------------------------------------


def purge(view: View, limit: int, rules: Rules) -> Operation[int]:
    """Drop up to `limit` jobs of a view, except RUNNING ones, in separate steps. Return the number of jobs dropped."""
    purged = 0
    # Ended jobs come first, because a purged job that was waiting may remain as CANCELLED. HELD jobs come before the jobs they await.
    order = (*ENDED, Status.HELD, Status.SCHEDULED, Status.READY)
    sections = [None] if view.tag is not None else [status for status in order if status in (view.statuses or Status)]
    cancelled = msgspec.structs.replace(view, statuses=(Status.CANCELLED,))  # jobs that were cancelled by the purge of another job
    for status, chosen in [*((status, view) for status in sections), (None if view.tag is not None else Status.CANCELLED, cancelled)]:
        after: Position | None = None
        while purged < limit:
            found = yield from pages.scan(ScanRequest(chosen, status, after, limit - purged, EXAMINED))
            ids = [record.id for decode, _ in found.listed if (record := decode()).status is not Status.RUNNING]
            refs = [Ref(Kind.JOB, job_id) for job_id in ids]
            purged += sum((yield from decide(ids, _purger(chosen, is_cancelled=chosen is cancelled), rules, refs, scans=MOVE_SCANS)))
            if (after := found.end) is None:
                break
    return purged


def _purger(view: View, *, is_cancelled: bool) -> Callable[[Draft, bytes], bool]:
    def one(draft: Draft, job_id: bytes) -> bool:
        job = draft.job(job_id)
        if job is None or BY_CODE.get(job.status) is Status.RUNNING or not pages.matches(job, view, draft.now):
            return False  # the job may have changed since it was listed
        if is_cancelled:
            if job.state.reason != text_bytes(wording.cancelled_by(job.state.cancelled_by or b"", wording.WAS_PURGED)):
                return False
            job.state.reason = text_bytes(wording.PURGED)
            draft.put(job)
        elif job.is_waiting:
            moves.finish(draft, job, Event.CANCEL, Status.CANCELLED, wording.PURGED, keep=PURGED_TTL)
        else:
            moves.bury(draft, job)
            return True
        if not draft.seen.scans[1]:  # otherwise a worker that handles the job's end still has to read the record
            moves.bury(draft, job)
        return True

    return one


def drop(ids: Sequence[bytes], rules: Rules) -> Operation[list[Status | None]]:
    def one(draft: Draft, job_id: bytes) -> Status | None:
        job = draft.job(job_id)
        if job is None or not job.is_kept(draft.now):
            return None
        found = BY_CODE[job.status]
        if found.is_ended:
            moves.bury(draft, job)
        return found

    return (yield from decide(ids, one, rules, [Ref(Kind.JOB, job_id) for job_id in ids], scans=MOVE_SCANS))


# --- the audit log --------------------------------------------------------------------------------------------


def record_action(action: Action, rules: Rules) -> Operation[None]:
    newest: Snapshot = yield Query(scans=(Scan("actions", rules.max_actions + 100, backwards=True, with_records=False),))
    ref = Ref(Kind.ACTION, action.id)
    surplus = [entry.ref for entry in newest.scans[0][rules.max_actions - 1 :]]

    def one(draft: Draft, ref: Ref) -> None:
        if draft.plain(*ref) is None:
            draft.put(Plain(ref, {}, pack_action(action)))
            for old in surplus:
                if old != ref and draft.plain(*old) is not None:
                    draft.drop(old)

    yield from decide([ref], one, rules, [ref, *surplus])


def actions(before: int | None, limit: int) -> Operation[list[ActionRecord]]:
    after = None if before is None else (before,)
    seen: Snapshot = yield Query(scans=(Scan("actions", limit, after=after, backwards=True),))
    records = [entry.record for entry in seen.scans[0] if entry.record is not None]
    return [action_record_of(record.header["seq"], record.header["created_at"], record.state) for record in records]
