"""The stored state of a job, and the table of the state changes that are allowed."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from taskflow.model.progress import Progress
from taskflow.model.stored import Unreadable
from taskflow.model.verdict import RunError


class Status(StrEnum):
    """Where a job stands. `HELD` waits for other jobs, `SCHEDULED` for a time, `READY` for a worker."""

    HELD = "held"
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__
    """In C: Enum's own is a call of Python's for each look into a table."""

    @property
    def is_waiting(self) -> bool:
        return self in WAITING

    @property
    def is_ended(self) -> bool:
        return self in ENDED


WAITING: Final = frozenset({Status.HELD, Status.SCHEDULED, Status.READY})
LIVE: Final = WAITING | {Status.RUNNING}
ENDED: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

# What stores write instead of the name. Never renumber: databases hold these.
CODES: Final = {
    Status.HELD: 0,
    Status.SCHEDULED: 1,
    Status.READY: 2,
    Status.RUNNING: 3,
    Status.SUCCEEDED: 4,
    Status.FAILED: 5,
    Status.CANCELLED: 6,
}
BY_CODE: Final = {code: status for status, code in CODES.items()}


class Event(StrEnum):
    """Why a job moves."""

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

# The legal moves: (from, event) -> to. None is "not there": before the enqueue and after the drop.
# A run that would wait again ends CANCELLED instead when it is asked to stop, or when a replacement waits behind it.
MOVES: Final[dict[tuple[Status | None, Event], frozenset[Status | None]]] = {
    (None, Event.ENQUEUE): frozenset({_HELD, _SCHEDULED, _READY}),
    (_HELD, Event.RELEASE): frozenset({_SCHEDULED, _READY}),
    (_SCHEDULED, Event.DUE): frozenset({_READY}),
    (_READY, Event.CLAIM): frozenset({_RUNNING}),
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
    **{(ended, Event.REDO): frozenset({_READY}) for ended in (_FAILED, _CANCELLED)},
    **{(ended, Event.DROP): frozenset({None}) for ended in ENDED},
}


# How the reason begins of a job that was set aside because it kept losing its workers.
POISON: Final = "poison: "


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands. Instants are aware, in UTC, by the store's clock; `result` and `payload` are encoded bytes.

    `due_at`       when it may start: the planned time while SCHEDULED, else when it became ready
    `waiting_for`  why it waits when it is not for its planned time or a worker: an unknown job, a running holder of its key, too many
                   hand-backs
    `reason`       why it ended, where there is one: "expired", "replaced by ID", "poison: ...", a user's word
    `errors`       of each run that failed or crashed, oldest first
    `worker`       the name of the worker that runs it or ran it last
    `unreadable`   stored fields that could not be read; each has its default here, the store keeps its bytes
    """

    id: bytes
    job: str
    queue: str
    status: Status
    priority: int
    max_attempts: int
    created_at: datetime
    due_at: datetime
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    hand_backs: int = 0
    epoch: int = 0
    worker: str | None = None
    progress: Progress | None = None
    result: bytes | None = None
    payload: bytes | None = None
    reason: str | None = None
    waiting_for: str | None = None
    errors: tuple[RunError, ...] = ()
    cancel_requested: bool = False
    headers: dict[str, str] = {}
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def attempt(self) -> int:
        """The number of the present or next attempt; of the last one when the job has ended."""
        last = self.last_error
        return last.attempt if last is not None else min(self.failures + 1, self.max_attempts)

    @property
    def last_error(self) -> RunError | None:
        """The error that ended a failed job. None if the job discarded itself: its errors, if any, are then of earlier runs."""
        if self.status is not Status.FAILED or not self.errors:
            return None
        last, reason = self.errors[-1], self.reason or ""
        return last if reason == f"{last.type}: {last.message}" or reason.startswith(POISON) else None
