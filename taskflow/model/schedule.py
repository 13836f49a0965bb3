"""Schedules as stores keep them. A store compares and moves their times; only workers read their definitions."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from taskflow.model.envelope import Envelope

OFFERED_FOR: Final = 1.0
"""Seconds for which a due schedule is left to the caller that it was offered to. Then it is offered again."""

MAX_OFFERS: Final = 100
"""The maximum number of schedules that one call of upkeep offers, and of definitions or firings in one call."""

MAX_NAME: Final = 200
"""The maximum length of a schedule's name, in printable characters."""


class Definition(NamedTuple):
    """A schedule's definition, as a store keeps it. `digest` is 16 bytes that differ if `body` differs. `body` is opaque to stores."""

    name: str
    digest: bytes
    body: bytes


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that upkeep offers to its caller. Times are microseconds since 1970, by the store's clock.

    `next_at`  the instant to fire next; None if it has to be computed from `now`
    `now`      the store's time
    """

    name: str
    digest: bytes
    body: bytes
    next_at: int | None
    now: int


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a schedule. The store takes it only if the schedule's digest is `digest` and its next instant `expected`.

    `next_at`   the next instant after this step; None if there is none
    `look_at`   when to offer the schedule again: `next_at` plus its jitter
    `envelope`  the job to add; None to add none
    `missed`    how many instants this step leaves out
    """

    name: str
    digest: bytes
    expected: int | None
    next_at: int | None
    look_at: int | None
    envelope: Envelope | None = None
    missed: int = 0


class Amendment(Enum):
    """A change of a schedule by its operator."""

    PAUSE = "pause"
    RESUME = "resume"
    REMOVE = "remove"


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as its store shows it. Times are aware datetimes in UTC.

    `next_at`      the instant to fire next; None if no worker has computed it yet, or there is none
    `last_at`      the instant that was fired last, and `fired_at` when that happened
    `last_id`      the id of the last job that was added
    `fired`        how many jobs the schedule has added, `skipped` how many were refused, `missed` how many instants were left out
    `declarers`    the names of the living sessions that declare it, the youngest first; empty for a schedule that was put
    `asleep_since` since when no living session declares it; None while one does, and for a schedule that was put
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
