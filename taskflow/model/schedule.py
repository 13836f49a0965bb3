"""Schedules as stores keep them. A store only compares and updates their times; workers interpret their definitions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope
from taskflow.model.stored_values import maybe_instant

OFFER_TTL: Final = 1.0
"""Seconds within which a caller must fire a schedule that it was offered. After that, the schedule is offered again."""

MAX_OFFERS: Final = 100
"""The maximum number of schedules that one call of `upkeep` offers, of definitions in one `define`, and of firings in one `fire`."""

MAX_OFFERED_BYTES: Final = 16 << 20
"""The total size of definitions, in bytes, after which one call of `upkeep` offers no more schedules."""

MAX_NAME: Final = 200
"""The maximum length of a schedule's name in characters, which must all be printable."""

SCHEDULE: Final = "tf-schedule"
SCHEDULED_FOR: Final = "tf-scheduled-for"
"""The headers of a job that a schedule has added: the schedule's name, and the instant with the schedule's zone in brackets."""


class Definition(NamedTuple):
    """A schedule's definition. Stores do not interpret `body`; they tell definitions apart by `digest`, a 16-byte hash of the body."""

    name: str
    digest: bytes
    body: bytes


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that upkeep has given its caller to fire. Times are in microseconds since 1970, by the store's clock.

    `next_at`  the next instant to fire; None if the caller has to compute it
    `since`    if `next_at` is None, the time after which to search for the next instant
    `now`      the store's current time
    """

    name: str
    digest: bytes
    body: bytes
    next_at: int | None
    since: int
    now: int


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a schedule. Unless `is_extra` is True, the store applies it only if the schedule is not paused, its digest is `digest`,
    and its next instant is `expected`.

    `next_at`    the next instant after this step; None if there is none
    `offer_at`   when to offer the schedule again: normally `next_at` plus its jitter
    `envelopes`  the job, or the jobs of the flow, to add; empty to add none
    `missed`     the number of instants that this step skips
    `is_alone`   True to add a flow only if all jobs of the schedule's last flow have ended; single jobs have a key instead
    `is_extra`   True to add the job or flow now, whatever the schedule expects, and to leave its instants as they are
    """

    name: str
    digest: bytes
    expected: int | None
    next_at: int | None
    offer_at: int | None
    envelopes: tuple[Envelope, ...] = ()
    missed: int = 0
    is_alone: bool = False
    is_extra: bool = False


class Amendment(Enum):
    """A change that an operator makes to a schedule."""

    PAUSE = "pause"
    RESUME = "resume"
    REMOVE = "remove"


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as a store shows it. Times are aware datetimes in UTC.

    `next_at`       the next instant to fire; None if there is none, or no worker has computed it yet
    `last_at`       the last instant that fired; None if none has
    `fired_at`      when that instant fired, which may be later than the instant
    `last_id`       the id of the job that was added last, or of the last job of the flow that was
    `fired`         how many jobs or flows the schedule has added
    `skipped`       how many jobs or flows were refused because an earlier one was live
    `missed`        how many instants were skipped because they were too late
    `declarers`     the names of the living sessions that declare it, youngest first; empty if `put` stored it
    `asleep_since`  when the last session that declared it ended; None while a session declares it, or if `put` stored it
    """

    name: str
    digest: bytes
    body: bytes
    is_declared: bool
    is_paused: bool
    next_at: datetime | None
    last_at: datetime | None
    fired_at: datetime | None
    last_id: bytes | None
    fired: int
    skipped: int
    missed: int
    declarers: tuple[str, ...]
    asleep_since: datetime | None


class ScheduleState(msgspec.Struct):
    """A schedule as the engine keeps it, with the rules by which it changes. Times are in microseconds since 1970.

    `offer_at`  when upkeep must offer it next or, if it is asleep, remove it; None if upkeep need not handle it
    `since`     if `next_at` has to be computed, the time after which to search for it. Offers do not change it, so no instant is lost if a
                caller dies with an offer. None if there is no next instant
    `last_flow` the id of the last flow that was added, by a firing or a trigger
    """

    name: str
    digest: bytes
    body: bytes
    is_declared: bool
    offer_at: int | None
    is_paused: bool = False
    next_at: int | None = None
    last_at: int | None = None
    fired_at: int | None = None
    last_id: bytes | None = None
    fired: int = 0
    skipped: int = 0
    missed: int = 0
    asleep_since: int | None = None
    since: int | None = None
    last_flow: bytes | None = None

    def offer_next(self, at: int | None) -> None:
        """Set the time of the next offer; None for no offer. A paused schedule isn't offered. One that is asleep keeps its removal time."""
        if self.asleep_since is None:
            self.offer_at = None if self.is_paused else at

    def bring_into_force(self, definition: Definition, now: int) -> None:
        """If the definition has changed, replace it, and have the next instant computed again (see `forget_next`)."""
        if definition.digest == self.digest:
            return
        _, self.digest, self.body = definition
        self.forget_next(now)

    def forget_next(self, now: int) -> None:
        """Forget the next instant, so that a worker computes it again. An instant that is already due is kept: it must still fire."""
        if self.next_at is None or self.next_at > now:
            if self.next_at is not None or self.since is None:
                self.next_at, self.since = None, now
            self.offer_next(now)

    def elect(self, youngest: Definition | None, now: int, keep_asleep: float) -> None:
        """Bring the youngest session's declaration into force. If no session declares the schedule, put it to sleep."""
        if youngest is None:
            if self.asleep_since is None:
                self.asleep_since, self.offer_at = now, now + to_microseconds(keep_asleep)
            return
        if self.asleep_since is not None:
            self.asleep_since = None
            self.offer_next(now)
        self.bring_into_force(youngest, now)

    def offer(self, now: int) -> Offer:
        """Offer the schedule to the caller of upkeep, and to no other caller for `OFFER_TTL` seconds."""
        since = now if self.since is None else self.since
        self.offer_next(now + to_microseconds(OFFER_TTL))
        return Offer(name=self.name, digest=self.digest, body=self.body, next_at=self.next_at, since=since, now=now)

    def expects(self, firing: Firing) -> bool:
        return not self.is_paused and (self.digest, self.next_at) == (firing.digest, firing.expected)

    def record_job(self, now: int, job_id: bytes, refused_for: str | None) -> None:
        """Record that the schedule has fired with a job to add. A job whose id the store already knew does not count."""
        self.last_at, self.fired_at = self.next_at, now
        if refused_for is None:
            self.fired += 1
            self.last_id = job_id
        elif refused_for == "key":
            self.skipped += 1

    def advance(self, firing: Firing) -> None:
        self.missed += firing.missed
        self.next_at = firing.next_at
        if firing.offer_at is None:
            self.since = None
        self.offer_next(firing.offer_at)

    def amend(self, amendment: Amendment, now: int) -> bool:
        """Pause or resume the schedule, and return True. For REMOVE, return True unless a living session declares the schedule."""
        if amendment is Amendment.REMOVE:
            return not self.is_declared or self.asleep_since is not None
        if amendment is Amendment.PAUSE:
            self.is_paused = True
            self.offer_next(None)
        elif self.is_paused:
            self.is_paused, self.next_at, self.since = False, None, now
            self.offer_next(now)
        return True

    def record(self, declarers: Iterable[str]) -> ScheduleRecord:
        fields: dict[str, Any] = {name: getattr(self, name) for name in ScheduleRecord.__struct_fields__ if name != "declarers"}
        for name in ("next_at", "last_at", "fired_at", "asleep_since"):
            fields[name] = maybe_instant(fields[name])
        return ScheduleRecord(**fields, declarers=tuple(declarers))
