"""A session: one life of a worker, as the store knows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from taskflow.model.clock import instant_of, to_seconds
from taskflow.model.envelope import ClaimId
from taskflow.model.progress import Progress
from taskflow.model.stored import FieldReader, instant, octets, text, unpacked, whole

MAX_CAUSE: Final = 200
"""The maximum length of the cause of a process's death, in characters."""

UNKNOWN_CAUSE: Final = "an unknown cause"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is 16 random bytes, new for each session. `name` is for people ("host:pid") and not part of a fence.

    After `ttl` seconds without a heartbeat the session may be reaped.
    """

    id: bytes
    name: str
    ttl: float = 20.0
    queues: tuple[str, ...] = ()
    concurrency: int = 0


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a session. `is_dying` means that it was reaped, and some of its leases are not released yet."""

    session: Session
    registered_at: datetime
    seconds_since_beat: float
    leases: int
    is_dying: bool


def session_record_of(
    *, id: bytes, name: Any, ttl: float, about: Any, registered_at: Any, silent_for: int, leases: int, is_dying: bool
) -> SessionRecord:
    """Return the record of a stored session. `ttl` is in seconds, other times are in microseconds.

    A field that cannot be read has its default: the session continues, and lapses, like others.
    """
    reader = FieldReader()
    nothing: tuple[tuple[str, ...], int] = ((), 0)
    queues, concurrency = reader.read("about", about, _about, nothing)
    return SessionRecord(
        session=Session(id=id, name=reader.read("name", name, text, ""), ttl=ttl, queues=queues, concurrency=concurrency),
        registered_at=reader.read("registered_at", registered_at, instant, instant_of(0)),
        seconds_since_beat=max(0.0, to_seconds(silent_for)),
        leases=leases,
        is_dying=is_dying,
    )


def _about(stored: Any) -> tuple[tuple[str, ...], int]:
    queues, concurrency, *_ = unpacked(octets(stored))
    return tuple(map(text, queues)), whole(concurrency)


class Report(msgspec.Struct, frozen=True):
    """The report of a heartbeat on one run: seconds since it began, and its progress if that has changed."""

    claim: ClaimId
    running_for: float
    progress: Progress | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat of a session, or the report of its death.

    `claims`    every lease that the session holds, including those of ended runs: only the answer to a settlement removes one
    `seen`      the highest claim request whose answer the session has processed or given up. Younger leases are never ghosts,
                so a delayed heartbeat cannot take back the leases of a later claim
    `leaving`   True in the last heartbeat: the remaining leases go back, and the session ends
    `looks`     True asks for the `Outlook` too, so that an idle worker sends no separate query
    `died_of`   the cause of the death of the session's process ("signal SIGSEGV"), reported by another process. The session is then
                dead, and each of its leases counts as a crash with that cause. Such a heartbeat must carry nothing else, or ValueError
                is raised: see `of_death`
    """

    session: bytes
    claims: tuple[ClaimId, ...] = ()
    seen: int = 0
    reports: tuple[Report, ...] = ()
    leaving: bool = False
    looks: bool = False
    died_of: str = ""

    @classmethod
    def of_death(cls, session: bytes, cause: str) -> Beat:
        """Return the report of a death. The cause is cut to `MAX_CAUSE` characters; an empty one becomes `UNKNOWN_CAUSE`."""
        return cls(session=session, died_of=cause[:MAX_CAUSE] or UNKNOWN_CAUSE)

    def __post_init__(self) -> None:
        if self.died_of and (self.claims or self.seen or self.reports or self.leaving or self.looks):
            raise ValueError(f"died_of={self.died_of!r}: a beat with died_of= must carry nothing else")
        if len(self.died_of) > MAX_CAUSE:
            raise ValueError(f"died_of has {len(self.died_of)} characters, expected at most {MAX_CAUSE}: Beat.of_death() shortens it")


class Outlook(msgspec.Struct, frozen=True):
    """The work that a store has.

    `is_ready`  True if a claim may find jobs in some queue
    `due_in`    seconds until upkeep may find work; infinite if nothing waits for a time
    """

    is_ready: bool
    due_in: float


class BeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a heartbeat. `lost`: leases in the beat that the session no longer has; `stopping`: jobs to stop; `ghosts`: how many
    went back;
    `outlook`: set if the beat asked for it.
    """

    lost: tuple[ClaimId, ...] = ()
    stopping: tuple[ClaimId, ...] = ()
    ghosts: int = 0
    outlook: Outlook | None = None
