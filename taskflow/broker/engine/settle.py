"""Settling runs, cancelling and reading jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflow.broker import topics
from taskflow.broker.engine import moves
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import Job, claim_bytes, content_of, fence_bytes, text_bytes
from taskflow.broker.engine.moves import MOVE_SCANS, decide
from taskflow.broker.engine.records import RUNNING, Flag, Kind
from taskflow.broker.engine.seam import Operation, Query, Ref, Run, Snapshot, Succeed
from taskflow.model import wording
from taskflow.model.clock import MICROSECONDS, to_microseconds
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.stored_values import packed
from taskflow.model.transitions import Event, apply_verdict
from taskflow.model.verdict import Settled, Settlement, Succeeded, is_plain_success


def settle(settlements: Sequence[Settlement], rules: Rules) -> Operation[list[Settled]]:
    """End runs. A success that carries nothing but its result is settled natively, if its job has no ties."""
    plain = [number for number, settlement in enumerate(settlements) if is_plain_success(settlement)]
    answers: dict[int, Settled] = {}
    if plain:
        ended: list[bool | None] = yield Succeed(_runs([settlements[number] for number in plain]))
        answers = {number: Settled.OK for number, is_ended in zip(plain, ended, strict=True) if is_ended}
    rest = [number for number in range(len(settlements)) if number not in answers]
    others = [settlements[number] for number in rest]
    refs = [Ref(Kind.JOB, settlement.id) for settlement in others]
    refs += [Ref(Kind.KEY, settlement.key) for settlement in others if settlement.key is not None]
    refs += [ref for settlement in others for follow_up in settlement.follow_ups for ref in moves.refs_of(follow_up)]
    settled = yield from decide(others, _settle, rules, refs, scans=MOVE_SCANS, locked=Settled.HELD_UP)
    answers.update(zip(rest, settled, strict=True))
    return [answers[number] for number in range(len(settlements))]


def _runs(settlements: Sequence[Settlement]) -> list[Run]:
    """Return successes as a store takes them. It makes no call for each, unless it keeps its arguments."""
    return [
        Run(
            each.id,
            each.epoch,
            each.claim.session,
            each.claim.request.to_bytes(8, "big") + each.claim.number.to_bytes(4, "big"),
            # a success
            each.verdict.result if each.arguments is None else content_of(each.verdict.result, each.arguments),  # type: ignore[attr-defined]
            round(each.ran_for * MICROSECONDS),
            round(each.keep_for * MICROSECONDS),
            each.key,
        )
        for each in settlements
    ]


def complete(settlement: Settlement, rules: Rules) -> Operation[Settled]:
    """End a run as SUCCEEDED in a caller's transaction, which has locked the whole store. Once that has committed, `settle` answers
    COMMITTED."""
    refs = [Ref(Kind.JOB, settlement.id), *(ref for follow_up in settlement.follow_ups for ref in moves.refs_of(follow_up))]
    [settled] = yield from decide([settlement], _complete, rules, refs, scans=MOVE_SCANS)
    return settled


def _complete(draft: Draft, settlement: Settlement) -> Settled:
    settled = _settle(draft, settlement, is_committed=True)
    if settled is Settled.COMMITTED:  # by this transaction, or by one before it
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
    transition = apply_verdict(job.counters, settlement.verdict, draft.rules, draft.now, settlement.cause)
    if job.has(Flag.POISON):  # no run has reported an outcome
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

_STOPPING: Final = text_bytes(wording.CANCELLED)


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
        job.state.stop = _STOPPING
        job.set_flag(Flag.MARKED, True)
        draft.put(job)
        draft.wake(topics.session(job.header["session"]))
    return found


def read(ids: Sequence[bytes]) -> Operation[list[Record | None]]:
    refs = [Ref(Kind.JOB, job_id) for job_id in ids]
    seen: Snapshot = yield Query(tuple(dict.fromkeys(refs)), with_content=True)
    return [_shown(seen, ref) for ref in refs]


def _shown(seen: Snapshot, ref: Ref) -> Record | None:
    stored = seen.records[ref]
    job = None if stored is None else Job.of_record(stored)
    return job.to_record() if job is not None and job.is_kept(seen.now) else None


def holders(keys: Sequence[bytes], rules: Rules) -> Operation[list[bytes | None]]:
    def one(draft: Draft, key: bytes) -> bytes | None:
        waiting, running = moves.holders(draft, key)
        holder = waiting or running
        return None if holder is None else holder.id

    return (yield from decide(keys, one, rules, [Ref(Kind.KEY, key) for key in keys]))
