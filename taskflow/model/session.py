"""A session: one life of a worker, as the store knows it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from taskflow.model.envelope import ClaimId
from taskflow.model.progress import Progress

MAX_CAUSE: Final = 200
"""Characters of what a process has died of."""

UNKNOWN_CAUSE: Final = "an unknown cause"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is 16 random bytes, fresh for every incarnation; `name` is for people ("host:pid") and no part of any fence.

    `ttl` in seconds: without a beat for so long the session may be reaped.
    """

    id: bytes
    name: str
    ttl: float = 20.0
    queues: tuple[str, ...] = ()
    concurrency: int = 0


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session read back. `is_dying`: reaped, with leases of it still to be released."""

    session: Session
    registered_at: datetime
    seconds_since_beat: float
    leases: int
    is_dying: bool


class Report(msgspec.Struct, frozen=True):
    """What a beat carries up about one run: seconds since it began, and its progress if that changed."""

    claim: ClaimId
    running_for: float
    progress: Progress | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A session's sign of life, or the word of its death.

    `claims`    every lease that it holds, whatever became of the run: only a settlement's answer takes one off
    `seen`      the highest claim request whose answer it has taken in or given up; younger leases are no ghosts,
                so a beat that was long under way cannot take back what a later claim gave
    `leaving`   the last beat: what is still leased goes back, and the session is dead
    `looks`     asks what there is to do, too: who has nothing to do need not ask by itself
    `died_of`   told by another process, one that knows: the session's process has died of it ("signal SIGSEGV"). The session is
                dead, and each of its leases a crash of that cause. Such a beat says nothing else, ValueError if it does: see `of_death`
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
        """With the cause's first `MAX_CAUSE` characters; an empty one becomes `UNKNOWN_CAUSE`, for without any it is a beat of life."""
        return cls(session=session, died_of=cause[:MAX_CAUSE] or UNKNOWN_CAUSE)

    def __post_init__(self) -> None:
        if self.died_of and (self.claims or self.seen or self.reports or self.leaving or self.looks):
            raise ValueError(f"died_of={self.died_of!r}: who tells of a session's death knows nothing else of it")
        if len(self.died_of) > MAX_CAUSE:
            raise ValueError(f"died_of has {len(self.died_of)} characters, of at most {MAX_CAUSE}: Beat.of_death() shortens it")


class Outlook(msgspec.Struct, frozen=True):
    """What there is to do: whether a claim, of whatever queues, might find jobs, and in how many seconds upkeep might have something to
    move, which is infinite when nothing waits for it."""

    is_ready: bool
    due_in: float


class BeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`lost`: leases named in the beat that are not the session's; `stopping`: jobs asked to stop; `ghosts`: how many went back;
    `outlook`: of a beat that looks."""

    lost: tuple[ClaimId, ...] = ()
    stopping: tuple[ClaimId, ...] = ()
    ghosts: int = 0
    outlook: Outlook | None = None
