"""The rules for a job's transitions: the legal moves, and the state after a run. The engine applies them (`broker/engine/moves.py`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple, Protocol, TypeVar

from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.fingerprint import UNKNOWN, poison_fingerprint
from taskflow.model.job_schema import Counters
from taskflow.model.record import ENDED, WAITING, Status
from taskflow.model.rules import Rules
from taskflow.model.verdict import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunEnding,
    RunError,
    Snoozed,
    Succeeded,
    Verdict,
)


class Event(StrEnum):
    """An event that moves a job from one status to another."""

    ENQUEUE = "enqueue"
    RELEASE = "release"
    DUE = "due"
    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    DISCARD = "discard"
    RETRY = "retry"
    SNOOZE = "snooze"
    PARK = "park"
    HAND_BACK = "hand back"
    GHOST = "ghost"
    CRASH = "crash"
    CANCEL = "cancel"
    EXPIRE = "expire"
    REPLACE = "replace"
    REDO = "operator's retry"
    DROP = "drop"

    __hash__ = str.__hash__


_HELD, _SCHEDULED, _READY, _RUNNING = Status.HELD, Status.SCHEDULED, Status.READY, Status.RUNNING
_SUCCEEDED, _FAILED, _CANCELLED = Status.SUCCEEDED, Status.FAILED, Status.CANCELLED

# The legal moves: (from, event) -> to. None means that the job does not exist: before it is enqueued, and after it is dropped. A job that
# would wait again after its run is CANCELLED instead if it was asked to stop, or if a replacement is waiting for it to end.
MOVES: Final[dict[tuple[Status | None, Event], frozenset[Status | None]]] = {
    (None, Event.ENQUEUE): frozenset({_HELD, _SCHEDULED, _READY}),
    (_HELD, Event.RELEASE): frozenset({_SCHEDULED, _READY}),
    (_SCHEDULED, Event.DUE): frozenset({_READY}),
    (_READY, Event.CLAIM): frozenset({_RUNNING}),
    (_READY, Event.PARK): frozenset({_SCHEDULED}),  # the job has limits, and its queue is paused
    (_RUNNING, Event.SUCCEED): frozenset({_SUCCEEDED}),
    (_RUNNING, Event.FAIL): frozenset({_FAILED}),
    (_RUNNING, Event.DISCARD): frozenset({_FAILED}),
    (_RUNNING, Event.CANCEL): frozenset({_CANCELLED}),
    (_RUNNING, Event.RETRY): frozenset({_SCHEDULED, _READY, _CANCELLED}),
    (_RUNNING, Event.SNOOZE): frozenset({_SCHEDULED, _READY, _CANCELLED}),
    (_RUNNING, Event.PARK): frozenset({_SCHEDULED, _READY, _CANCELLED}),
    (_RUNNING, Event.HAND_BACK): frozenset({_SCHEDULED, _READY, _CANCELLED}),
    (_RUNNING, Event.GHOST): frozenset({_READY, _CANCELLED}),
    (_RUNNING, Event.CRASH): frozenset({_SCHEDULED, _READY, _FAILED, _CANCELLED}),
    **{(waiting, event): frozenset({_CANCELLED}) for waiting in WAITING for event in (Event.CANCEL, Event.EXPIRE, Event.REPLACE)},
    **{(ended, Event.REDO): frozenset({_HELD, _SCHEDULED, _READY}) for ended in (_FAILED, _CANCELLED)},
    **{(ended, Event.DROP): frozenset({None}) for ended in ENDED},
}


class Transition(NamedTuple):
    """The changes that a store makes to a job after its run has ended.

    `ends_as`     the status with which the job ends; None if it waits again
    `reason`      why the job ended, or why it is poison
    `due_at`      when a waiting job may run, in microseconds since 1970; None if it becomes READY at once, in its old place
    `waiting_for` the reason to show while the job waits
    `error`       an error to add to the job's history
    `cause`       the cause to store with a job that ends as FAILED
    `is_paused`   True if the job waits for the end of a pause
    """

    event: Event
    counters: Counters
    ends_as: Status | None = None
    reason: str | None = None
    due_at: int | None = None
    waiting_for: str | None = None
    error: RunError | None = None
    is_poison: bool = False
    cause: bytes | None = None
    is_paused: bool = False


# --- enqueue ------------------------------------------------------------------------------------------------------


class KeyHolder(Protocol):
    """A live job that has a key."""

    @property
    def id(self) -> bytes: ...

    @property
    def cancel_requested(self) -> object: ...


Holder = TypeVar("Holder", bound=KeyHolder)


def refused_for(waiting: Holder | None, running: Holder | None, on_conflict: OnConflict) -> Holder | None:
    """Return the live job that keeps a new job with the same key from being added, or None. Ignore a running job that was asked to stop."""
    if on_conflict is not OnConflict.KEEP:
        return None
    return waiting or (running if running is not None and running.cancel_requested is None else None)


def due_at(envelope: Envelope, now: int) -> int:
    return max(now, envelope.at) if envelope.at is not None else now + to_microseconds(envelope.after)


# --- the end of a run ---------------------------------------------------------------------------------------------


def apply_verdict(job: Counters, verdict: Verdict, rules: Rules, now: int, cause: bytes | None = None) -> Transition:
    if isinstance(verdict, Completed):
        verdict = verdict.otherwise
    cause = cause or UNKNOWN
    if (job.crashes or job.hand_backs or job.parked_at is not None) and not isinstance(verdict, (HandedBack, Parked)):
        job = Counters(job.failures, snoozes=job.snoozes)
    match verdict:
        case Succeeded():
            return Transition(Event.SUCCEED, job, Status.SUCCEEDED)
        case Failed(error):
            return Transition(Event.FAIL, _failed(job), Status.FAILED, f"{error.type}: {error.message}", error=error, cause=cause)
        case Discarded(reason):
            return Transition(Event.DISCARD, job, Status.FAILED, reason, cause=cause)
        case Cancelled(reason):
            return Transition(Event.CANCEL, job, Status.CANCELLED, reason)
        case Retried(error, after):
            return Transition(Event.RETRY, _failed(job), due_at=now + to_microseconds(after), error=error)
        case Snoozed(after):
            return Transition(Event.SNOOZE, job._replace(snoozes=job.snoozes + 1), due_at=now + to_microseconds(after))
        case Parked(waiting_for, after):
            parked = job._replace(parked_at=now if job.parked_at is None else job.parked_at)
            return Transition(Event.PARK, parked, due_at=now + to_microseconds(after), waiting_for=waiting_for)
        case HandedBack(counts):
            return hand_back(job, rules, now, counts=counts)
    raise TypeError(f"{verdict!r} is not a verdict that a store knows")


def _failed(job: Counters) -> Counters:
    return Counters(job.failures + 1, *job[1:])


def hand_back(job: Counters, rules: Rules, now: int, *, counts: bool) -> Transition:
    if not counts:
        return Transition(Event.HAND_BACK, job)
    job = job._replace(hand_backs=job.hand_backs + 1)
    wait = to_microseconds(rules.hand_back_wait(job.hand_backs))
    if not wait:
        return Transition(Event.HAND_BACK, job)
    return Transition(Event.HAND_BACK, job, due_at=now + wait, waiting_for=wording.handed_back_in_vain(job.hand_backs))


def crash(
    job: Counters, rules: Rules, now: int, *, worker: str | None, died_of: str, is_stopping: bool, has_follow_up: bool = False
) -> Transition:
    """Return the transition of a job whose worker was lost. A job that was asked to stop never becomes poison.

    A poison job with a follow-up waits for a worker that sends the call. If its workers keep being lost, it ends without the follow-up.
    """
    job = job._replace(crashes=job.crashes + 1)
    lost = RunError(wording.CRASHED, wording.worker_lost(worker, job.crashes, died_of), "", job.failures + 1, ending=RunEnding.CRASHED)
    wait = to_microseconds(rules.crash_wait(job.crashes))
    if job.crashes > rules.max_crashes and not is_stopping:
        reason = wording.poison(job.crashes, died_of)
        if has_follow_up and job.crashes <= rules.max_poison_crashes:
            due = now + wait if wait and job.crashes > rules.max_crashes + 1 else None
            return Transition(Event.CRASH, job, None, reason, due, wording.FOLLOW_UP_WAITS, lost, is_poison=True)
        reason += wording.FOLLOW_UP_LOST * has_follow_up
        return Transition(Event.CRASH, job, Status.FAILED, reason, error=lost, is_poison=True, cause=poison_fingerprint(died_of))
    return Transition(Event.CRASH, job, due_at=now + wait if wait else None, error=lost)


def requeue(transition: Transition, cancel_requested: str | None, successor: bytes | None) -> Transition:
    """Return the transition of a job that would wait again. If it was asked to stop, or a replacement is waiting, the job is CANCELLED."""
    if cancel_requested is not None:
        return transition._replace(ends_as=Status.CANCELLED, reason=cancel_requested)
    if successor is not None:
        return transition._replace(ends_as=Status.CANCELLED, reason=wording.replaced_by(successor))
    return transition


# --- the end of a job ---------------------------------------------------------------------------------------------


def keep_for(status: Status, rules: Rules) -> int:
    """Return how many microseconds a store keeps a job that ended with this status, unless the settlement says otherwise."""
    return to_microseconds(rules.keep_failed if status is Status.FAILED else rules.keep_cancelled)
