"""Moves: changes of a job's status, with their consequences for keys, for slots, and for jobs that await others.

The rules are in `model/transitions.py`. The functions here apply them to the records of a draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker import topics
from taskflow.broker.engine import answers, flows, gates, turns
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.job import Job, State, text_bytes
from taskflow.broker.engine.records import BURIED, HELD, READY, RUNNING, SCHEDULED, Flag, Kind
from taskflow.broker.engine.seam import NOW, After, Ref, Scan
from taskflow.broker.engine.session import session_body
from taskflow.broker.protocol import Added, Refused
from taskflow.model import transitions, wording
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.fingerprint import pack_cause
from taskflow.model.ids import id_text
from taskflow.model.job_schema import has_follow_up
from taskflow.model.limits import Gate, lacking
from taskflow.model.record import CODES, Status
from taskflow.model.session import deploy_of
from taskflow.model.transitions import MOVES, Event, Transition

HOLDING: Final = (READY, RUNNING)
"""The statuses in which a job holds a slot of each of its gates."""

MOVE_SCANS: Final = (
    Scan("due", 1, with_records=False),
    Scan("hearers", 1, with_records=False),
    Scan("ends", 1, with_records=False),
)
"""The first scans of every operation that moves jobs: the first due job, a session that wants ends, and the first registered end."""

_LEGAL: Final = {
    (BURIED if was is None else CODES[was], event, BURIED if to is None else CODES[to])
    for (was, event), all_to in MOVES.items()
    for to in all_to
}


def move(draft: Draft, job: Job, event: Event, to: int) -> None:
    """Change a job's status, count the event, and pass on the slots that the job gives up. Raises AssertionError for an illegal move."""
    header = job.header
    if event is not Event.ENQUEUE and (header["status"], event, to) not in _LEGAL:
        raise AssertionError(f"{id_text(job.id)}: {event} cannot change the status from {header['status']} to {to}")
    if to == READY and job.has(Flag.FAIR):
        turns.take(draft, job, turns.line_of(job.queue, header["priority"]))
    elif to == READY and job.has(Flag.LIMITED):
        header["since"] = draft.now
    had_slots = event is not Event.ENQUEUE and header["status"] in HOLDING
    header["status"] = to
    if header.get("gate") is not None and to != SCHEDULED:
        header["gate"] = None
    draft.count(header["queue"], event)
    draft.put(job)
    if had_slots and to not in HOLDING and job.has(Flag.LIMITED):
        free_slots(draft, job.limits)


def free_slots(draft: Draft, limits: Sequence[Gate]) -> None:
    """Give back a slot of each of these gates. The jobs that receive the slots become READY."""
    for job in gates.leave(draft, limits):
        move(draft, job, Event.DUE, READY)


# --- a job that begins to wait --------------------------------------------------------------------------------


def add(draft: Draft, envelope: Envelope) -> Added | Refused:
    """Add a job. Refuse it if its id is known, its key belongs to a live job, or another job represents the call (see answers.py)."""
    if (known := draft.job(envelope.id)) is not None:
        existing = known.state.existing
        return Refused(envelope.id, envelope.id, "id") if existing is None else Refused(envelope.id, existing, "key")
    waiting, running = holders(draft, envelope.key)
    if (holder := transitions.refused_for(waiting, running, envelope.on_conflict)) is not None:
        return Refused(envelope.id, holder.id, "key")
    if envelope.on_conflict is OnConflict.DEBOUNCE and waiting is not None and not waiting.has(Flag.POISON):
        gates.declare(draft, envelope.limits)
        if waiting.status == READY and {gate.id for gate in waiting.limits} != {gate.id for gate in envelope.limits}:
            move(draft, waiting, Event.PARK, SCHEDULED)  # gives back its slots
        return answers.merge(draft, waiting, envelope)
    job = Job.of_envelope(envelope, draft.now)
    if (existing := answers.throttled(draft, job, envelope.throttle)) is not None:
        return Refused(envelope.id, existing, "key")
    gates.declare(draft, envelope.limits)
    take_key(draft, job, waiting, running)
    enter(draft, job, Event.ENQUEUE)
    return Added(envelope.id, None if waiting is None else waiting.id)


def add_flow(draft: Draft, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
    """Add all jobs of a flow. Add none if one of their ids is known: the flow was sent before, and some of its jobs may be forgotten."""
    if any(draft.job(envelope.id) is not None for envelope in envelopes):
        return [Refused(envelope.id, envelope.id, "id") for envelope in envelopes]
    return [add(draft, envelope) for envelope in envelopes]


def take_key(draft: Draft, job: Job, waiting: Job | None, running: Job | None) -> None:
    """Give a job its key. The job replaces a waiting job that has the key, and waits until a running job with the key ends."""
    if waiting is not None:
        finish(draft, waiting, Event.REPLACE, Status.CANCELLED, wording.replaced_by(job.id))
    if job.sent.key is not None:
        holder_id, next_id = (job.id, None) if running is None else (running.id, job.id)
        draft.put(Plain(Ref(Kind.KEY, job.sent.key), {"holder": holder_id, "next": next_id}))
    if running is not None:
        job.set_flag(Flag.BEHIND, True)
        job.state.behind, job.state.waiting = running.id, text_bytes(wording.waits_behind(running.id))


def holders(draft: Draft, key: bytes | None) -> tuple[Job | None, Job | None]:
    """Return the waiting job and the running job that have the key, each None if there is no such job.

    The key's record names both, but doesn't show which one is which. A job that it names but that isn't live no longer has the key.
    """
    record = None if key is None else draft.plain(Kind.KEY, key)
    if record is None:
        return None, None
    named = [draft.job(job_id) for job_id in (record.header["holder"], record.header["next"]) if job_id is not None]
    waiting = next((job for job in named if job is not None and job.is_waiting), None)
    running = next((job for job in named if job is not None and job.status == RUNNING), None)
    return waiting, running


def enter(draft: Draft, job: Job, event: Event) -> None:
    """Make a job HELD, SCHEDULED or READY, depending on what it awaits, its due time and its gates. If it's RUNNING, ignore `awaits`."""
    due_at = job.header["due_at"]
    if job.status != RUNNING and (job.header["awaits"] > 0 or job.has(Flag.BEHIND)):
        move(draft, job, event, HELD)
    elif not (isinstance(due_at, After) or due_at <= draft.now):
        move(draft, job, event, SCHEDULED)
        wake_if_first(draft, due_at)
    elif job.status == RUNNING and any(gate.per for gate in job.limits):  # the next run has to pay again
        move(draft, job, event, SCHEDULED)
        enter(draft, job, Event.DUE)
    elif not job.has(Flag.LIMITED) or job.status == RUNNING or gates.admit(draft, job):
        move(draft, job, event, READY)
    elif event is Event.DUE:
        draft.put(job)
    else:
        move(draft, job, event, SCHEDULED)


def wake_if_first(draft: Draft, due_at: int) -> None:
    """Announce a due time if it's earlier than all others."""
    first = draft.seen.scans[0]
    if not first or due_at < first[0].position[0]:
        draft.wake(topics.DUE)


# --- the end of a run -----------------------------------------------------------------------------------------


def apply_transition(draft: Draft, job: Job, transition: Transition, *, keep: float | None = None, is_settled: bool = False) -> None:
    """Apply a transition to a job whose run has ended. `keep` is in seconds; None means the default for the job's status."""
    job.counters = transition.counters
    job.header["cause"] = transition.cause
    if transition.is_poison:
        job.set_flag(Flag.POISON, True)
        job.header["expires_at"], job.state.reason = None, text_bytes(transition.reason)
    if transition.error is not None:
        job.add_error(transition.error, draft.now)
    if transition.ends_as is None:
        requeue(draft, job, transition)
    else:
        finish(draft, job, transition.event, transition.ends_as, transition.reason, keep=keep, is_settled=is_settled)


def requeue(draft: Draft, job: Job, transition: Transition) -> None:
    """Make a job wait again after a run, unless its cancellation or a replacement ends it.

    If the transition has no due time, the job becomes READY in its old place, even if the clock has been set back to before its due time.
    """
    job.state.waiting = text_bytes(transition.waiting_for)  # replaces what it waited for before the run
    successor = _successor(draft, job)
    if successor is not None or job.state.stop is not None:
        transition = transitions.requeue(transition, job.cancel_requested, successor)
        finish(draft, job, transition.event, Status.CANCELLED, transition.reason)  # the worker doesn't know that the job ended
        return
    job.end_lease()
    job.set_flag(Flag.PAUSED, transition.is_paused)
    if not transition.is_paused:
        job.state.place = None
    if transition.due_at is None:
        move(draft, job, transition.event, READY)
    else:
        job.header["due_at"] = NOW if transition.due_at <= draft.now else transition.due_at
        if job.has(Flag.FAIR) and not transition.is_paused:
            job.header["since"] = None  # the next run takes a new turn
        enter(draft, job, transition.event)


def readmit(draft: Draft, job: Job, limits: Sequence[Gate]) -> None:
    """Take back a job that its worker hasn't started. It must pass its gates again, and those in `limits` that its sender didn't know."""
    if job.state.stop is not None or _successor(draft, job) is not None:
        requeue(draft, job, Transition(Event.HAND_BACK, job.counters))
        return
    job.end_lease()
    move(draft, job, Event.HAND_BACK, SCHEDULED)
    job.state.limits += lacking(job.limits, limits)
    job.set_flag(Flag.LIMITED, bool(job.limits))
    job.set_flag(Flag.MANY_GATES, len(job.limits) > 1)
    enter(draft, job, Event.DUE)


def _successor(draft: Draft, job: Job) -> bytes | None:
    """Return the id of the job that waits for this one to end because it has the same key, or None."""
    record = None if job.sent.key is None else draft.plain(Kind.KEY, job.sent.key)
    if record is None or record.header["holder"] != job.id or record.header["next"] is None:
        return None
    waiting = draft.job(record.header["next"])
    return waiting.id if waiting is not None and waiting.is_waiting else None


def hand_back(draft: Draft, job: Job, *, counts: bool) -> None:
    apply_transition(draft, job, transitions.hand_back(job.counters, draft.rules, draft.now, counts=counts))


def crash(draft: Draft, job: Job, died_of: str) -> None:
    transition = transitions.crash(
        job.counters,
        draft.rules,
        draft.now,
        worker=job.header["worker"],
        died_of=died_of,
        is_stopping=job.cancel_requested is not None,
        has_follow_up=has_follow_up(job.sent.extras),
    )
    if transition.cause is not None:
        session = draft.plain(Kind.SESSION, job.header["session"])
        deploy = "" if session is None else deploy_of(session_body(session).about)
        transition = transition._replace(cause=pack_cause(transition.cause, deploy))
    apply_transition(draft, job, transition)


# --- the end of a job -----------------------------------------------------------------------------------------


def finish(
    draft: Draft,
    job: Job,
    event: Event,
    status: Status,
    reason: str | None = None,
    *,
    keep: float | None = None,
    is_settled: bool = False,
    by: flows.Action | None = None,
) -> None:
    """End a job, free its key, and release the jobs that await it. `keep` is in seconds, or None for the status's default. `is_settled` is
    True if the job's worker knows about the end, and `by` is the action on its flow that ends the job."""
    move(draft, job, event, CODES[status])
    if by is None and job.sent.member is not None and job.state.cancelled_by is None and status is Status.CANCELLED and keep is None:
        keep = draft.rules.keep_failed  # for as long as the jobs cancelled along with it, because its retry restores them
    keep_for = transitions.keep_for(status, draft.rules) if keep is None else to_microseconds(keep)
    job.end_lease()
    job.header["ended_at"], job.header["fade_at"] = draft.now, draft.now + keep_for
    job.state.reason, job.state.waiting = text_bytes(reason), None
    job.set_flag(Flag.BEHIND | Flag.ARRIVING, False)
    job.state.replaces, job.state.replaced = False, None
    release_key(draft, job.id, job.sent.key)
    if job.sent.member is not None:
        job.state.cancelled_by = job.state.cancelled_by if by is None else by.cause
        flows.end(draft, job, by)
    elif job.has(Flag.AWAITED):
        release_joined(draft, job.sent.joined)
        job.set_flag(Flag.AWAITED, False)
    if not is_settled and draft.seen.scans[1]:
        _record_end(draft, job.id)


def release_key(draft: Draft, job_id: bytes, key: bytes | None) -> None:
    """Free the key of a job that has ended. If another job waits behind it, give that job the key, and release it if it awaits nothing."""
    record = None if key is None else draft.plain(Kind.KEY, key)
    if record is None:
        return
    if record.header["next"] == job_id:
        record.header["next"] = None
        draft.put(record)
    elif record.header["holder"] == job_id:
        waiting = None if record.header["next"] is None else draft.job(record.header["next"])
        if waiting is None or not waiting.is_live:
            draft.drop(record.ref)
            return
        record.header |= {"holder": waiting.id, "next": None}
        draft.put(record)
        waiting.set_flag(Flag.BEHIND, False)
        waiting.state.behind = waiting.state.waiting = None
        draft.put(waiting)
        if waiting.status == HELD and waiting.header["awaits"] <= 0:
            release(draft, waiting)


def release(draft: Draft, job: Job) -> None:
    """Release a HELD job: from now on, it waits only for its due time, its gates and a worker."""
    if job.header["due_at"] <= draft.now:
        job.header["due_at"] = NOW
    enter(draft, job, Event.RELEASE)


def ask_to_stop(draft: Draft, job: Job) -> None:
    """Mark a running job as asked to stop, and wake its session."""
    job.state.stop = text_bytes(wording.CANCELLED)
    job.set_flag(Flag.MARKED, True)
    draft.put(job)
    draft.wake(topics.session(job.header["session"]))


def release_joined(draft: Draft, joined: Sequence[bytes]) -> None:
    """Subtract one from the `awaits` of these jobs, because a job that they await has ended."""
    for job_id in joined:
        draft.add(Ref(Kind.JOB, job_id), "awaits", -1)
    draft.released.update(joined)


def _record_end(draft: Draft, job_id: bytes) -> None:
    """Record that a job has ended without a settlement, so that upkeep reports the end to a worker."""
    if draft.plain(Kind.END, job_id) is None:
        draft.put(Plain(Ref(Kind.END, job_id), {}))
        if not draft.seen.scans[2]:
            draft.wake(topics.DUE)


def bury(draft: Draft, job: Job) -> None:
    """Drop an ended job, but keep its id and its fence for a while: a client may still resend a call that refers to it."""
    flows.drop_notes(draft, job)
    move(draft, job, Event.DROP, BURIED)
    forgotten_at = min(job.header["ended_at"], draft.now) + to_microseconds(draft.rules.repeat_for)
    if forgotten_at <= draft.now:
        draft.drop(job.ref)
        return
    job.header |= {"flags": 0, "cause": None, "fade_at": forgotten_at}
    job.state, job.sent_body, job.new_content = State(), None, None
    job.entries = {"tags": ()}


def make_fresh(job: Job, due_at: int) -> None:
    """Reset a job as if it had just been added, but keep its errors and gates. In a flow, it still awaits jobs that have not succeeded."""
    fresh: dict[str, Any] = dict.fromkeys(("started_at", "ended_at", "fade_at", "expires_at", "worker", "cause", "since"))
    job.header |= fresh | {"due_at": due_at, "flags": job.header["flags"] & ~(Flag.POISON | Flag.MARKED | Flag.BEHIND)}
    if job.sent.member is None:
        job.header["awaits"] = 0
    job.state = State(errors=job.state.errors, limits=job.state.limits, spent=job.state.spent)
    job.restarts = True


def redo(draft: Draft, job: Job, due_at: int = NOW) -> None:
    """Make a job that has ended wait for another run."""
    make_fresh(job, due_at)
    enter(draft, job, Event.REDO)
    if job.status == HELD:
        draft.released.add(job.id)  # the jobs that it awaits may end meanwhile, which doesn't change its revision


def refs_of(envelope: Envelope) -> list[Ref]:
    """Return the refs of the records that the decision to add a job reads first."""
    refs = [Ref(Kind.JOB, envelope.id)]
    if envelope.key is not None:
        refs += [Ref(Kind.KEY, envelope.key), *([Ref(Kind.JOB, envelope.key)] if envelope.throttle else ())]
    if envelope.limits:
        refs += [*gates.refs_of(envelope.limits), Ref(Kind.QUEUE, envelope.queue.encode())]
    if envelope.fair is not None:
        refs.append(turns.turn_ref(turns.line_of(envelope.queue, envelope.priority), envelope.fair))
    return refs
