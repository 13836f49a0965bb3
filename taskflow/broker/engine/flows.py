"""Flows: the consequences of a job's end for the other jobs of its flow.

The step that ends a successful run subtracts one from the `awaits` of each job that awaits it. For those that take the result, it
also stores the result as a note (a record). Apart from collected failures (see below), nothing else does. So `awaits` is the number of
awaited jobs that have not succeeded, whatever the status of the job that awaits them.

If a job ends in another way, `awaits` stays unchanged, so no job that needs its result starts. The step stores an action. By this action,
the jobs in its scope that have not begun are then cancelled, in portions. A retry replaces it with an action that restores them. Each of
these changes expects the action's revision, so changes that were decided before the retry have no effect. A job that collects failures
receives a failure like a result: its `awaits` is reduced, and it gets a note.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from taskflow.broker import topics
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.job import Job, result_and_arguments, text_bytes
from taskflow.broker.engine.records import CANCELLED, FAILED, HELD, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import KEEP, Entry, Record, Ref, Scan
from taskflow.broker.protocol import PURGED_TTL
from taskflow.model import wording
from taskflow.model.flow import MAX_MEMBERS, MAX_NOTES_AT_ONCE, FailureNote, Member, Tie, failure_note, number_in, numbered, result_note
from taskflow.model.ids import ID_BYTES
from taskflow.model.verdict import unpack_errors

CANCEL_AWAITING, RESTORE, CANCEL, FORGET = range(4)
"""What an action does: cancel the jobs of a failure's scope that have not begun, restore them, cancel the whole flow, or drop notes."""

CARRY_OUT_TIMEOUT: Final = 5_000_000
"""The microseconds for which upkeep leaves an action to the operation that has begun it."""

MAX_RETRIED: Final = 500
"""The maximum number of retried jobs that share an action."""

MAX_INLINE: Final = 1_024
"""The maximum size in bytes of a note that is read together with a job's other notes. Larger notes are read separately."""


class Action(msgspec.Struct, frozen=True, array_like=True):
    """The work that remains to be done on the jobs of a flow.

    `what`     one of `CANCEL_AWAITING`, `RESTORE`, `CANCEL`, `FORGET`
    `owner`    the flow's id; for FORGET, the id of the job whose notes are dropped
    `first`    the first number of the scope, which is the range of the jobs that the action may change
    `last`     the last number of the scope
    `cause`    the job that failed or was cancelled; for CANCEL and RESTORE, the flow's id
    `reason`   why jobs are cancelled
    `failure`  the failure, in the form in which jobs that collect failures receive it
    `after`    how far the action has got: for RESTORE, the first number that it has not reached; for the others, how many numbers it has
               passed, beginning with `last`
    `begun`    when an operation has begun to carry it out, in microseconds; 0 if it's left to upkeep
    `retried`  for RESTORE, the jobs whose failures have cancelled those to restore
    `keep`     for how long cancelled jobs are kept, in seconds; None for the default
    """

    what: int
    owner: bytes
    first: int = 0
    last: int = MAX_MEMBERS
    cause: bytes = b""
    reason: str = ""
    failure: FailureNote = FailureNote("", "", b"")
    after: int = 0
    begun: int = 0
    retried: frozenset[bytes] = frozenset()
    keep: float | None = None

    def scan(self, limit: int) -> Scan:
        """Return a scan for the next `limit` jobs or notes that the action has not reached. To cancel jobs, it begins with the last one,
        because workers begin with the first."""
        is_forward = self.what == RESTORE
        begin, end = (max(self.first, self.after), self.last + 1) if is_forward else (self.last + 1 - self.after, self.first)
        after, until = (numbered(self.owner, begin),), (numbered(self.owner, end),)
        return Scan(_INDEX[self.what], limit, after=after, until=until, backwards=not is_forward)

    def behind(self, last: Entry) -> Action:
        """Return the part of the action that remains after this entry."""
        number = number_in(last.position[0])
        return msgspec.structs.replace(self, after=number + 1 if self.what == RESTORE else self.last + 1 - number)

    def is_left_in(self, now: int) -> int:
        """Return the microseconds after which upkeep carries the action out, because the operation that has begun it may have died. Until
        then, the two would be in each other's way."""
        passed = now - self.begun
        return CARRY_OUT_TIMEOUT - passed if 0 <= passed < CARRY_OUT_TIMEOUT else 0

    @property
    def extent(self) -> tuple[int, bytes, int, int]:
        """The kind, owner and scope. Many jobs of a flow may fail at once, so actions with the same extent are carried out together. So are
        all that restore jobs of a flow."""
        return (self.what, self.owner, 0, 0) if self.what == RESTORE else (self.what, self.owner, self.first, self.last)


_INDEX: Final = {CANCEL_AWAITING: "flow_live", RESTORE: "flow", CANCEL: "flow_live", FORGET: "notes"}
_NOTHING: Final = Action(FORGET, b"")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = lru_cache(64)(msgspec.msgpack.Decoder(Action).decode)  # each job of a portion reads the same action


def together(actions: Collection[Action]) -> Action:
    """Return an action that reaches all jobs that any of these actions has to reach."""
    first, last = min(each.first for each in actions), max(each.last for each in actions)
    return msgspec.structs.replace(min(actions, key=lambda each: each.after), first=first, last=last)


def action_in(action_id: bytes, record: Record | Plain | None) -> Action:
    """Decode an action. If it's missing, invalid, or for a flow or job that its id doesn't name, return one that does nothing."""
    try:
        found = _decode(record.state) if record is not None and isinstance(record.state, bytes) else _NOTHING
    except msgspec.MsgspecError:
        return _NOTHING
    is_possible = found.what in _INDEX and len(found.owner) == ID_BYTES and action_id.startswith(found.owner)
    return found if is_possible and 0 <= found.first <= found.last <= MAX_MEMBERS else _NOTHING


def actions_in(found: Sequence[Entry]) -> dict[bytes, Action]:
    """Return the actions that a scan has found, by their ids."""
    return {entry.ref.id: action_in(entry.ref.id, entry.record) for entry in found}


def is_current(draft: Draft, action_id: bytes, action: Action) -> bool:
    """Return True if this action is still stored, and so has to be carried out. The calling decision then expects the action's revision."""
    current = action_in(action_id, draft.plain(Kind.FLOW, action_id))
    return (current.what, current.cause) == (action.what, action.cause)


def put(draft: Draft, action_id: bytes, action: Action, *, leaves: bool = False) -> None:
    """Store an action. With `leaves`, upkeep carries it out, otherwise this operation."""
    record = draft.plain(Kind.FLOW, action_id) or Plain(Ref(Kind.FLOW, action_id), {})
    action = msgspec.structs.replace(action, begun=0 if leaves else draft.now)
    record.state = _encode(action)
    draft.put(record)
    if leaves:
        draft.wake(topics.DUE)
    else:
        draft.actions[action_id] = action


# --- the end of a job -----------------------------------------------------------------------------------------


def end(draft: Draft, job: Job, by: Action | None) -> None:
    """Apply the consequences of a job's end to the other jobs of its flow. `by` is the action that ended the job, if any."""
    member, state = job.sent.member, job.state
    assert member is not None
    has_succeeded = job.status == SUCCEEDED
    # if an action with a wider scope ended this job, it also handles the jobs that await this one
    is_apart = state.cancelled_by is None or (by is not None and (by.first, by.last) == (member.first, member.last))
    counts = [each for each in _ties_of(job) if has_succeeded or (each[1].collects and is_apart)]
    needed = [Ref(Kind.NOTE, numbered(successor, tie.number)) for successor, tie in counts if tie.number is not None]
    if has_succeeded:
        draft.require([*needed, *_own_notes(job)])
        drop_notes(draft, job)
        job.set_flag(Flag.AWAITED | Flag.NOTED, False)
        result, _ = result_and_arguments(job.new_content if isinstance(job.new_content, bytes) else None)
        note = result_note(result or b"")
    else:
        acts = by is None and _acts(job, member)
        draft.require([*needed, *([Ref(Kind.FLOW, job.header["member"])] if acts else [])])
        failure = _failure_of(job) if by is None else by.failure
        note = failure_note(failure) if needed else b""
        if acts:
            _cancel_awaiting(draft, job, failure)
    for successor, tie in counts:
        if tie.number is None or _put_note(draft, numbered(successor, tie.number), note):
            state.counted = not has_succeeded
            draft.add(Ref(Kind.JOB, successor), "awaits", -1)
            draft.released.add(successor)


def _ties_of(job: Job) -> list[tuple[bytes, Tie]]:
    """Return the jobs that still await this job, each with its tie."""
    return [each for each in zip(job.sent.joined, job.sent.ties, strict=False) if each[0] not in job.state.spent]


def _own_notes(job: Job) -> list[Ref]:
    """Return the refs of the notes that a job may have received, or an empty list if there are too many to drop at once."""
    inputs = 0 if job.sent.member is None or not job.has(Flag.NOTED) else job.sent.member.inputs
    return [Ref(Kind.NOTE, numbered(job.id, number)) for number in range(inputs)] if inputs <= MAX_NOTES_AT_ONCE else []


def _acts(job: Job, member: Member) -> bool:
    """Return True if a job's failure affects other jobs: the job has a scope, and no action has cancelled it."""
    return job.state.cancelled_by is None and member.first < member.last


def _cancel_awaiting(draft: Draft, job: Job, failure: FailureNote) -> None:
    member = job.sent.member
    assert member is not None
    is_purged = job.status == CANCELLED and failure.message == wording.PURGED  # nothing can restore the others, so don't keep them for long
    keep = PURGED_TTL if is_purged else draft.rules.keep_failed
    why = wording.cancelled_by(job.id, "has failed" if job.status == FAILED else wording.WAS_PURGED if is_purged else "was cancelled")
    put(draft, job.header["member"], Action(CANCEL_AWAITING, member.flow, member.first, member.last, job.id, why, failure, keep=keep))


def _put_note(draft: Draft, note_id: bytes, note: bytes) -> bool:
    """Store a note. Return False if it already exists, in which case the job that takes it has already counted this job's end."""
    ref = Ref(Kind.NOTE, note_id)
    if draft.plain(*ref) is not None:
        return False
    is_small = len(note) <= MAX_INLINE
    draft.put(Plain(ref, {"size": len(note)}, note if is_small else None, content=KEEP if is_small else note))
    return True


def drop_notes(draft: Draft, job: Job) -> None:
    """Drop the notes that a job has received. If there are many, leave them to upkeep."""
    refs = _own_notes(job)
    draft.require(refs)
    for ref in refs:
        if draft.plain(*ref) is not None:
            draft.drop(ref)
    if not refs and job.has(Flag.NOTED):  # upkeep drops them, so that the settlements queued behind this one don't have to wait
        put(draft, job.id, Action(FORGET, job.id), leaves=True)


def _failure_of(job: Job) -> FailureNote:
    """Return a job's failure in the form in which jobs that collect failures receive it."""
    reason = (job.state.reason or b"").decode(errors="replace")
    if job.status == CANCELLED:
        return FailureNote("", reason, job.id)
    try:
        last = unpack_errors(job.state.errors)[-1:]
    except (ValueError, TypeError):
        last = ()
    said = [FailureNote(error.type, error.message, job.id) for error in last if reason == f"{error.type}: {error.message}"]
    return said[0] if said else FailureNote(wording.DISCARDED, reason, job.id)


# --- retries --------------------------------------------------------------------------------------------------


def redo(draft: Draft, job: Job, *, acts: bool) -> None:
    """Prepare the retry of a job that has ended: undo the consequences of its failure. With `acts`, an action restores the jobs that the
    failure cancelled, and cancels the retried job again if the jobs that it awaits won't run. A job that has already begun with the
    failure keeps it, and receives nothing more from the retried job."""
    member, state = job.sent.member, job.state
    assert member is not None
    given = [each for each in _ties_of(job) if each[1].collects and state.counted]
    notes = [Ref(Kind.NOTE, numbered(successor, tie.number)) for successor, tie in given if tie.number is not None]
    # jobs with similar numbers share the action
    own, restore_id = Ref(Kind.FLOW, job.header["member"]), numbered(member.flow, MAX_MEMBERS + 1 + member.number // MAX_RETRIED)
    draft.require([*(Ref(Kind.JOB, successor) for successor, _ in given), *notes, own, Ref(Kind.FLOW, restore_id)])
    for successor, tie in given:
        waiting = draft.job(successor)
        if waiting is None or waiting.status not in (HELD, FAILED, CANCELLED):
            state.spent = (*state.spent, successor)
            continue
        draft.put(waiting)  # a concurrent release of this job then finds the record changed, and decides again
        draft.add(waiting.ref, "awaits", 1)
        waiting.add_awaited(1)  # in memory too, because the same call may also retry this successor
        if tie.number is not None:
            draft.drop(Ref(Kind.NOTE, numbered(successor, tie.number)))
    if acts and (_acts(job, member) or job.header["awaits"] > 0):
        new = Action(RESTORE, member.flow, member.first, member.last, member.flow, retried=frozenset((job.id,)))
        known = action_in(restore_id, draft.plain(Kind.FLOW, restore_id))
        if known.what == RESTORE:
            new = msgspec.structs.replace(together([known, new]), after=0, retried=known.retried | new.retried)
        put(draft, restore_id, new)
        if draft.plain(*own) is not None:
            draft.drop(own)  # the failure cancels nothing more


def whole(flow: bytes, after: int = 0, limit: int = MAX_MEMBERS) -> Scan:
    """Return a scan for a flow's jobs from the number `after` on."""
    return Scan("flow", limit, after=(numbered(flow, after),), until=(numbered(flow, MAX_MEMBERS),))


def alive(flow: bytes) -> Scan:
    """Return a scan for the first of a flow's jobs that have not ended."""
    return whole(flow, 0, 1)._replace(of="flow_live", with_records=False)


class Census:
    """Counts the jobs of a flow by what they await and how they ended. The caller adds the jobs in portions."""

    def __init__(self) -> None:
        self._failures, self._waiting = dict[tuple[int, int], bytes](), list[int]()
        self._awaited, self._held = Counter[bytes](), list[Job]()
        self._others, self._cancelled = set[bytes](), list[tuple[bytes, list[bytes]]]()

    def add(self, found: Sequence[Entry]) -> None:
        for job in [Job.of_record(entry.record) for entry in found if entry.record is not None]:
            awaited_by = [successor for successor, tie in _ties_of(job) if not (tie.collects and job.state.counted)]
            if job.status in (FAILED, CANCELLED) and job.state.cancelled_by is not None:
                self._cancelled.append((job.state.cancelled_by, awaited_by))
                continue
            self._others.add(job.id)
            if job.status != SUCCEEDED:
                self._awaited.update(awaited_by)
            if job.is_waiting:
                self._waiting.append(number_in(job.header["member"]))
            if job.status == HELD:
                self._held.append(job)
            elif job.status in (FAILED, CANCELLED) and job.sent.member is not None and _acts(job, job.sent.member):
                self._failures[job.sent.member.first, job.sent.member.last] = job.id

    def failures(self) -> list[bytes]:
        """For each scope that has both failures and waiting jobs, return a job that failed, or was cancelled but not by an action."""
        at, waiting = bisect_left, self._waiting
        return [job_id for (first, last), job_id in self._failures.items() if at(waiting, first) < at(waiting, last + 1)]

    def in_vain(self) -> list[bytes]:
        """Return the HELD jobs whose `awaits` exceeds the number of awaited jobs that may still succeed. A job that was dropped, or that
        nothing restores, can't. A failed job can, because its failure cancels the jobs that await it. The awaited jobs of a flow are read
        before the one that awaits them, whose `awaits` can only have fallen in between."""
        for cause, awaited_by in self._cancelled:
            if cause in self._others:
                self._awaited.update(awaited_by)
        return [job.id for job in self._held if job.header["awaits"] > self._awaited[job.id]]


def was_cancelled_by_flow(record: Record | None) -> bool:
    """Return True if a job was cancelled because of other jobs of its flow."""
    if record is None or record.header["status"] != CANCELLED:
        return False
    state = Job.of_record(record).state
    return state.cancelled_by is not None or state.reason == text_bytes(wording.AWAITS_IN_VAIN)


def cancel_again(draft: Draft, job_id: bytes) -> bool:
    """If a job is still FAILED or CANCELLED, begin its action again, because another job's retry has restored jobs in its scope."""
    job = draft.job(job_id)
    if job is not None and job.sent.member is not None and job.status in (FAILED, CANCELLED) and _acts(job, job.sent.member):
        _cancel_awaiting(draft, job, _failure_of(job))
    return True
