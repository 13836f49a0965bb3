"""The words that every store says alike: reasons, messages, and what a queue's totals are counted under."""

from __future__ import annotations

from typing import Final

from taskflow.model.ids import id_text
from taskflow.model.record import POISON

CANCELLED: Final = "cancelled"
EXPIRED: Final = "expired"
PURGED: Final = "purged"

CRASHED: Final = "taskflow.WorkerLost"
"""The type of the error that a lost lease leaves in a job's record."""

DROPPED_OVER_CAP: Final = "dropped over the cap"

SESSION_LOST: Final = "the session was reaped or never registered: register a new one, with a fresh id"


def session_reaped(name: str) -> str:
    return f"session {name} was reaped: register a new one, with a fresh id"


def replaced_by(job_id: bytes) -> str:
    return f"replaced by {id_text(job_id)}"


def waits_behind(job_id: bytes) -> str:
    return f"job {id_text(job_id)}, which runs with its key"


def worker_lost(worker: str | None, crashes: int) -> str:
    return f"worker {worker} was lost while it had this job (crash {crashes})"


def poison(why: str) -> str:
    return f"{POISON}{why}"


def handed_back_in_vain(hand_backs: int) -> str:
    return f"handed back {hand_backs} times without an outcome"


def lost_in_a_row(crashes: int) -> str:
    return f"its worker was lost {crashes} times in a row while it had this job"
