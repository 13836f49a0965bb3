"""Wording shared by all stores: reasons, messages, and the names of totals. The cause of a worker's death is appended unchanged."""

from __future__ import annotations

from typing import Final

from taskflow.model.ids import id_text

CANCELLED: Final = "cancelled"
EXPIRED: Final = "expired"
PURGED: Final = "purged"

POISON: Final = "poison: "
"""The beginning of the reason of a job that ended because its workers kept being lost."""

CRASHED: Final = "taskflow.WorkerLost"
"""The error type that a job's record shows for a run whose worker was lost."""

UNREADABLE: Final = "taskflow.UnreadableJob"
"""The error type of a job whose stored fields cannot be read."""

DROPPED_OVER_CAP: Final = "dropped over the cap"

CLOSED: Final = "the broker is closed: create a new one"

IN_PASSWORDS: Final = "in a password, write / as %2F, ? as %3F, @ as %40 and # as %23"

STORE_FULL: Final = "the store is full: it holds at most %d live jobs; let workers catch up"

SESSION_LOST: Final = "the session was reaped or never registered: register a new one, with a fresh id"

REPLACED_BY: Final = "replaced by %s"
ARRIVES: Final = "a worker to admit it, because it was sent with a key in a transaction"
HANDED_BACK_IN_VAIN: Final = "a back-off: handed back %d times without an outcome"
JOB_PAUSED: Final = "the end of the pause of job %s"
FOLLOW_UP_WAITS: Final = "a worker that ends it as poison and sends its on_failure call"
FOLLOW_UP_LOST: Final = "; its on_failure call was not sent, because no worker survived to send it"

WAYS_OUT: Final = "deploy the code that sent it, or cancel it if that code was removed (taskflow cancel)"
"""What to do about a parked job."""

UNKNOWN_JOB: Final = f"a worker that knows the job %r; {WAYS_OUT}"
OTHER_CODE: Final = f"a worker with other code: %s; {WAYS_OUT}"


def job_paused(job: str) -> str:
    return JOB_PAUSED % job


def session_reaped(name: str) -> str:
    return f"session {name} was reaped: register a new one, with a fresh id"


def replaced_by(job_id: bytes) -> str:
    return REPLACED_BY % id_text(job_id)


def waits_behind(job_id: bytes) -> str:
    return f"job {id_text(job_id)}, which is running with the same key"


WAITS_AT_GATE: Final = "limit %s"


def waits_at_gate(limit: str, key: str) -> str:
    return WAITS_AT_GATE % limit + (f" of {key}" if key else "")


def waits_for_resume(queue: str) -> str:
    return f"queue {queue}, which is paused"


DISCARDED: Final = "taskflow.Discard"
"""The error type of a job that discarded itself, as shown to jobs that collect failures."""


AWAITS_IN_VAIN: Final = "a job of its flow that it awaits was cancelled or dropped: retry the whole flow, or send it again"
WAS_PURGED: Final = "was purged"


def cancelled_by(job_id: bytes, how: str) -> str:
    """Return the reason to show for a job that was ended by another job. `how` is "has failed", "was cancelled" or WAS_PURGED."""
    return f"job {id_text(job_id)} of its flow {how}"


def key_held_by(job_id: bytes) -> str:
    return f"key held by {id_text(job_id)}"


def worker_lost(worker: str | None, crashes: int, died_of: str = "") -> str:
    return f"worker {worker} was lost while it had this job (crash {crashes})" + (f": {died_of}" if died_of else "")


def poison(crashes: int, died_of: str = "") -> str:
    why = f"its worker was lost {crashes} times in a row while it had this job"
    return f"{POISON}{why}" + (f", the last time: {died_of}" if died_of else "")


def handed_back_in_vain(hand_backs: int) -> str:
    return HANDED_BACK_IN_VAIN % hand_backs
