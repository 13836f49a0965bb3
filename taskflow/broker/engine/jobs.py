"""Adds jobs, settles runs, and cancels and reads jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.engine import flows, gates, handover, job_pauses, moves, turns
from taskflow.broker.engine.decisions import admit_again, decide, first_ready, follow
from taskflow.broker.engine.draft import Draft, Foreseen, Left
from taskflow.broker.engine.job import Job, claim_bytes, content_of, fence_bytes, put_of_plain
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import RUNNING, Flag, Kind
from taskflow.broker.engine.seam import (
    Add,
    Applied,
    Apply,
    Ended,
    Full,
    Operation,
    Query,
    Record as StoredRecord,
    Ref,
    Run,
    Scan,
    Snapshot,
    Succeed,
)
from taskflow.broker.protocol import Added, Notes, Refused
from taskflow.model import wording
from taskflow.model.clock import MICROSECONDS, to_microseconds
from taskflow.model.envelope import Envelope, is_plain
from taskflow.model.errors import StoreFull
from taskflow.model.flow import MAX_MEMBERS, number_in, numbered
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.stored_values import packed
from taskflow.model.transitions import Event, apply_verdict
from taskflow.model.verdict import HandedBack, Settled, Settlement, Snoozed, Succeeded, is_plain_success

# --- adding jobs ---------------------------------------------------------------------------------------------------

MAX_READY: Final = 1_000
"""The maximum number of READY jobs that pass their rates again when a run closes one."""

MAX_ASSUMED: Final = 512
"""The maximum payload size in bytes of a job whose key isn't checked first. Redis would store a larger payload even for a refused job."""


def enqueue(envelopes: Sequence[Envelope], rules: Rules, *, assumes_new: bool = False) -> Operation[list[Added | Refused]]:
    """Add jobs in one step. With `assumes_new`, first try without a query, as if no live job had one of their keys. Raises StoreFull."""
    if all(map(is_plain, envelopes)) and len({envelope.id for envelope in envelopes}) == len(envelopes):
        are_new: list[bool] | str = yield Add([put_of_plain(envelope) for envelope in envelopes])
        if isinstance(are_new, str):
            raise StoreFull(are_new)
        answers = [_answer(envelope.id, is_new) for envelope, is_new in zip(envelopes, are_new, strict=True)]
    else:
        refs = [ref for envelope in envelopes for ref in moves.refs_of(envelope)]
        added = None
        are_due = all(
            each.at is None and len(each.payload) <= MAX_ASSUMED and not (each.after or each.throttle or each.limits or each.fair)
            for each in envelopes
        )
        if assumes_new and are_due and len(set(refs)) == len(refs):
            added = yield from _add_new(envelopes, refs, rules)
        lines = {turns.line_of(each.queue, each.priority) for each in envelopes if each.fair is not None}
        foreseen = Foreseen(scans=frozenset(map(turns.first_of, lines)))
        more: dict[str, Any] = {"scans": MOVE_SCANS, "grows": True, "together": True, "foreseen": foreseen}
        if added is not None:
            answers = added
        elif (one := envelopes[0].member) is not None and all(each.member and each.member.flow == one.flow for each in envelopes):
            [answers] = yield from decide([envelopes], moves.add_flow, rules, refs, **more)
        else:
            answers = yield from decide(envelopes, moves.add, rules, refs, **more)
    return (yield from compare_known(envelopes, answers))


_NOTHING_STORED: Final = Snapshot(0, 0, b"", {}, ([], [], []))


def _add_new(envelopes: Sequence[Envelope], refs: Sequence[Ref], rules: Rules) -> Operation[list[Added | Refused] | None]:
    """Add due jobs without a query, as if neither they nor their keys existed. Return None, and add none, if one of these exists."""
    draft = Draft(_NOTHING_STORED._replace(records=dict.fromkeys(refs)), rules)
    answers = draft.decide(envelopes, moves.add, together=True)
    [answer], _ = yield Apply([step for _, step in draft.steps()], grows=True)
    if isinstance(answer, Full):
        raise StoreFull(answer.says)
    return answers if isinstance(answer, Applied) else None


def are_new(answers: Sequence[Added | Refused]) -> bool:
    """Return True if all jobs were added and none replaced another. The next jobs are then probably new too."""
    return all(isinstance(answer, Added) and answer.replaced is None for answer in answers)


def _answer(job_id: bytes, is_new: bool) -> Added | Refused:
    return Added(job_id) if is_new else Refused(job_id, job_id, "id")


def compare_known(envelopes: Sequence[Envelope], answers: Sequence[Added | Refused]) -> Operation[list[Added | Refused]]:
    """Correct the answers for known ids: find out whether a call was resent or clashes with the stored job. Other answers need no query."""
    ids = [answer.id for answer in answers if isinstance(answer, Refused) and answer.because == "id"]
    if not ids:
        return list(answers)
    known = dict(zip(ids, (yield from read(ids)), strict=True))
    return [
        Refused.as_known(envelope, known[envelope.id]) if isinstance(answer, Refused) and answer.because == "id" else answer
        for envelope, answer in zip(envelopes, answers, strict=True)
    ]


# --- settling runs, cancelling and reading jobs --------------------------------------------------------------------


def settle(settlements: Sequence[Settlement], rules: Rules) -> Operation[list[Settled]]:
    """End runs. A success with only a result may take a fast path: the store's `succeed`, or `handover` if the job has one limit."""
    plain = [
        number
        for number, each in enumerate(settlements)
        if is_plain_success(each) and not each.limits and ((each.awaited_by is None and not each.notes) or _is_native(each))
    ]
    simple = [number for number, each in enumerate(settlements) if each.limits and handover.is_simple(each)]
    answers: dict[int, Settled] = {}
    if simple:
        limited = [settlements[number] for number in simple]
        over = yield from handover.settle(_runs(limited), [each.limits[0].id for each in limited], rules)
        answers = {simple[number]: Settled.OK for number in over}
    if plain:
        ended: Ended = yield Succeed(_runs([settlements[number] for number in plain]))
        answers |= {number: Settled.OK for number, is_ended in zip(plain, ended.answers, strict=True) if is_ended}
        if ended.released:
            yield from follow(Left(ended.released), rules)
    rest = [number for number in range(len(settlements)) if number not in answers]
    if not rest:
        return [answers[number] for number in range(len(settlements))]
    others = [settlements[number] for number in rest]
    refs = [Ref(Kind.JOB, settlement.id) for settlement in others]
    refs += [Ref(Kind.KEY, settlement.key) for settlement in others if settlement.key is not None]
    refs += [ref for settlement in others for ref in gates.refs_of(settlement.limits)]
    refs += [Ref(Kind.NOTE, note_id) for settlement in others for note_id in settlement.notes]
    refs += [ref for settlement in others for follow_up in settlement.follow_ups for ref in moves.refs_of(follow_up)]
    foreseen = gates.foresee([gate for settlement in others for gate in settlement.limits])
    settled = yield from decide(others, _settle, rules, refs, scans=MOVE_SCANS, locked=Settled.HELD_UP, foreseen=foreseen)
    answers.update(zip(rest, settled, strict=True))
    closing = [each.limits for each in others if isinstance(each.verdict, Snoozed) and each.verdict.closes]
    if closed := {gate.id for limits in closing for gate in limits if gate.per}:
        yield from admit_again(closed, (yield from first_ready(MAX_READY)), rules)
    return [answers[number] for number in range(len(settlements))]


def _runs(settlements: Sequence[Settlement]) -> list[Run]:
    """Convert the settlements of successful runs for a store. For speed, this calls no helper unless arguments are kept."""
    return [
        Run(
            each.id,
            each.epoch,
            each.claim.session,
            each.claim.request.to_bytes(8, "big") + each.claim.number.to_bytes(4, "big"),
            each.verdict.result if each.arguments is None else content_of(each.verdict.result, each.arguments),  # type: ignore[attr-defined]
            round(each.ran_for * MICROSECONDS),
            round(each.keep_for * MICROSECONDS),
            each.key,
            each.awaited_by,
            each.notes[0] if each.notes else b"",
        )
        for each in settlements
    ]


def _is_native(success: Settlement) -> bool:
    """Return True if `succeed` can apply a success to its flow: at most one job awaits this job, and only a small result is kept."""
    if success.awaited_by is None:
        return not success.notes
    assert isinstance(success.verdict, Succeeded)
    return len(success.notes) <= 1 and success.arguments is None and len(success.verdict.result) < flows.MAX_INLINE


def complete(settlement: Settlement, rules: Rules) -> Operation[Settled]:
    """End a run as SUCCEEDED in a caller's transaction, which has locked the whole store. Once the transaction has committed, `settle`
    returns COMMITTED for this run."""
    refs = [Ref(Kind.JOB, settlement.id), *(ref for follow_up in settlement.follow_ups for ref in moves.refs_of(follow_up))]
    [settled] = yield from decide([settlement], _complete, rules, refs, scans=MOVE_SCANS)
    return settled


def _complete(draft: Draft, settlement: Settlement) -> Settled:
    settled = _settle(draft, settlement, is_committed=True)
    if settled is Settled.COMMITTED:  # by this transaction, or by an earlier one
        return Settled.OK
    job = draft.job(settlement.id)
    has_settled = job is not None and job.header["settled"] == _fence(settlement, is_committed=True)
    return Settled.OK if has_settled else Settled.STALE


def _fence(settlement: Settlement, *, is_committed: bool) -> bytes:
    return fence_bytes(settlement.epoch, *claim_bytes(settlement.claim), is_committed=is_committed)


def _settle(draft: Draft, settlement: Settlement, *, is_committed: bool = False) -> Settled:
    job = draft.job(settlement.id)
    if job is None:
        return Settled.STALE
    header, session, claim = job.header, *claim_bytes(settlement.claim)
    if (header["status"], header["epoch"], header["session"], header["claim"]) != (RUNNING, settlement.epoch, session, claim):
        return _answer_repeated(job, settlement)
    header["settled"] = fence_bytes(settlement.epoch, session, claim, is_committed=is_committed)
    header["started_at"] = draft.now - to_microseconds(settlement.ran_for)
    if settlement.progress is not None:
        job.set_progress(packed([settlement.progress.fraction, settlement.progress.note]))
    if isinstance(settlement.verdict, HandedBack) and settlement.verdict.limits is not None:
        moves.readmit(draft, job, settlement.verdict.limits)
        return Settled.OK
    if isinstance(settlement.verdict, Snoozed) and settlement.verdict.closes:
        gates.close(draft, job.limits, settlement.verdict.after)
    transition = apply_verdict(job.counters, settlement.verdict, draft.rules, draft.now, settlement.cause)
    if isinstance(settlement.verdict, HandedBack) and settlement.verdict.is_paused:
        transition = job_pauses.park(draft, job, transition)
    if job.has(Flag.POISON):  # the worker didn't run the job, so no outcome resets its counters
        transition = transition._replace(counters=job.counters)
    keep = None
    if isinstance(settlement.verdict, Succeeded):
        job.new_content, keep = content_of(settlement.verdict.result, settlement.arguments), settlement.keep_for
    moves.apply_transition(draft, job, transition, keep=keep, is_settled=True)
    for follow_up in settlement.follow_ups:
        moves.add(draft, follow_up)
    return Settled.OK


def _answer_repeated(job: Job, settlement: Settlement) -> Settled:
    settled = job.header["settled"]
    if settled == _fence(settlement, is_committed=False):
        return Settled.OK
    return Settled.COMMITTED if settled == _fence(settlement, is_committed=True) else Settled.STALE


# --- cancel, read, holders ------------------------------------------------------------------------------------


def cancel(ids: Sequence[bytes], rules: Rules) -> Operation[list[Status | None]]:
    refs = [Ref(Kind.JOB, job_id) for job_id in ids]
    return (yield from decide(ids, _cancel, rules, refs, scans=MOVE_SCANS))


def _cancel(draft: Draft, job_id: bytes) -> Status | None:
    job = draft.job(job_id)
    if job is None or not job.is_kept(draft.now):
        return None
    found = BY_CODE[job.status]
    if job.is_waiting:
        moves.finish(draft, job, Event.CANCEL, Status.CANCELLED, wording.CANCELLED)
    elif job.status == RUNNING:
        moves.ask_to_stop(draft, job)
    return found


def read(ids: Sequence[bytes]) -> Operation[list[Record | None]]:
    refs = [Ref(Kind.JOB, job_id) for job_id in ids]
    seen: Snapshot = yield Query(tuple(dict.fromkeys(refs)), with_content=True)
    return [_shown(seen, ref) for ref in refs]


def _shown(seen: Snapshot, ref: Ref) -> Record | None:
    stored = seen.records[ref]
    job = None if stored is None else Job.of_record(stored)
    return job.to_record() if job is not None and job.is_kept(seen.now) else None


MAX_NOTES: Final = 1_000
MAX_NOTES_BYTES: Final = 4 << 20


def notes(job_id: bytes, first: int) -> Operation[Notes]:
    """Return the results and failures that a job in a flow received, from input `first` on. Large ones require a second query."""
    after = (job_id if first <= 0 else numbered(job_id, first - 1),)
    seen: Snapshot = yield Query(scans=(Scan("notes", MAX_NOTES, after=after, until=(numbered(job_id, MAX_MEMBERS),)),))
    records, size = list[StoredRecord](), 0
    for entry in seen.scans[0]:
        assert entry.record is not None
        size += entry.record.header["size"]
        if records and size > MAX_NOTES_BYTES:
            break
        records.append(entry.record)
    if large := tuple([record.ref for record in records if record.state is None]):
        contents: Snapshot = yield Query(large, with_content=True)
        records = [contents.records.get(record.ref, record) or record for record in records]
    found = [(number_in(record.ref.id), record.state or record.content or b"") for record in records]
    has_more = len(records) < len(seen.scans[0]) or len(records) == MAX_NOTES
    return Notes(tuple(found), found[-1][0] + 1 if has_more else None)


def holders(keys: Sequence[bytes], rules: Rules) -> Operation[list[bytes | None]]:
    def one(draft: Draft, key: bytes) -> bytes | None:
        waiting, running = moves.holders(draft, key)
        holder = waiting or running
        return None if holder is None else holder.id

    return (yield from decide(keys, one, rules, [Ref(Kind.KEY, key) for key in keys]))
