"""Decides which jobs an offered schedule adds now, from its stored definition and the rules for late instants."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Literal, cast

import msgspec

from taskflow.model.clock import MICROSECONDS, instant_of, microseconds_of, to_microseconds, to_seconds
from taskflow.model.envelope import Envelope, OnConflict, check_envelope
from taskflow.model.job_schema import check_headers
from taskflow.model.rules import MAX_DURATION
from taskflow.model.schedule import MAX_OFFERS, SCHEDULE, SCHEDULED_FOR, Definition, Firing, Offer
from taskflow.model.stored_values import LATEST
from taskflow.model.timetable import CronTimes, EveryTimes, OwnTimes, Timetable, zone_of

Overlap = Literal["allow", "skip", "latest"]
CatchUp = Literal["none", "latest", "all"]

PROMPT: Final = 10.0
"""Seconds by which a schedule may be late and still fire as usual; `catch_up` applies only if it is later than that.
If a worker is killed while firing a schedule, that causes a shorter delay."""

MAX_COUNTED: Final = 100
"""The maximum number of missed instants that are counted at once. Further ones are skipped without being counted."""

MAX_FLOW_JOBS: Final = 1_000
"""The maximum number of jobs in a schedule's flow."""

MAX_FLOW_DEFINITION: Final = 1 << 20
"""The maximum size in bytes of the stored definition of a schedule that sends a flow."""


class SchedulePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule's definition, as it is stored.

    `times`      when it fires
    `template`   the envelope of its jobs, without the id and the schedule's headers, which `envelopes_for` sets; for a flow, the envelope
                 of the last job. In a flow's templates, the ids of the flow and of its jobs are numbers, which are replaced too
    `before`     the templates of the flow's other jobs, in their order
    `overlap`    whether an instant adds a job while an earlier one is live: "allow" adds it, "skip" does not, and "latest", which flows
                 cannot have, replaces an earlier job that is waiting
    `catch_up`   which missed instants fire later: "none", the "latest", or "all"
    `max_delay`  how late, in seconds, an instant may still fire; None for no limit
    `jitter`     the longest delay, in seconds; each instant has a fixed delay between 0 and this
    """

    times: CronTimes | EveryTimes | OwnTimes
    template: Envelope
    before: tuple[Envelope, ...] = ()
    overlap: Overlap = "allow"
    catch_up: CatchUp = "latest"
    max_delay: float | None = None
    jitter: float = 0.0

    def to_definition(self, name: str) -> Definition:
        """Return the definition to store. Raises ValueError if a job's headers are too long once the schedule's are added, or if a flow
        is too large."""
        for envelope in self.envelopes_for(name, 0):
            check_headers(envelope.headers)
        body = _encode(self)
        if self.is_flow and len(body) > MAX_FLOW_DEFINITION:
            raise ValueError(
                f"the flow's jobs have {len(body):,} bytes including their arguments and options, but a schedule can store "
                f"{MAX_FLOW_DEFINITION:,}: schedule a job that sends the flow"
            )
        return Definition(name, hashlib.sha256(body).digest()[:16], body)

    @staticmethod
    @lru_cache(maxsize=100)
    def from_body(body: bytes) -> SchedulePlan:
        """Decode a stored definition. Raises ValueError if the bytes are not a definition or a value in it is invalid."""
        plan = _decode(body)
        for template in plan.templates:
            check_envelope(template)
            has_key = len(template.key or NO_ID) != len(NO_ID) or (plan.is_flow and template.key is not None)
            if template.after or template.at is not None or has_key or (template.member is not None) != plan.is_flow:
                raise ValueError("a template has a time, a key or links to other jobs, which a schedule's call cannot have")
        jobs = {template.id: template.awaits for template in plan.templates}
        awaited = Counter(job_id for template in plan.templates for job_id in template.joins)
        if not len(jobs) == len(plan.templates) <= MAX_FLOW_JOBS or awaited != Counter(jobs):
            raise ValueError(f"the flow has over {MAX_FLOW_JOBS:,} jobs, two jobs with the same id, or one that awaits a job outside of it")
        for name, seconds in (("max_delay", plan.max_delay or 0.0), ("jitter", plan.jitter)):
            if not 0 <= seconds <= MAX_DURATION:
                raise ValueError(f"{name}={seconds}: expected seconds, from 0 to a hundred years")
        if isinstance(plan.times, CronTimes):
            plan.times.checked(plan.times.expression, plan.times.tz)
        elif isinstance(plan.times, EveryTimes):
            plan.times.checked(plan.times.seconds)
        return plan

    @property
    def is_flow(self) -> bool:
        return self.template.member is not None

    @property
    def templates(self) -> tuple[Envelope, ...]:
        return (*self.before, self.template)

    @property
    def zone(self) -> str:
        return self.times.tz if isinstance(self.times, CronTimes) else "UTC"

    def delay_of(self, name: str, instant: int) -> int:
        """Return the delay of an instant, up to `jitter`, in microseconds. All workers derive it from the name and the instant."""
        if not self.jitter:
            return 0
        drawn = int.from_bytes(_digest_of(name, instant)[-4:], "big") / (1 << 32)
        return int(drawn * self.jitter * MICROSECONDS)

    def lag_of(self, name: str, instant: int | None, now: int) -> float:
        """Return how many seconds have passed at `now` since an instant plus its delay; negative before that, 0 if there is no instant."""
        return 0.0 if instant is None else to_seconds(now - instant - self.delay_of(name, instant))

    def envelopes_for(
        self, name: str, instant: int, *, is_alone: bool = False, new_id: Callable[[], bytes] | None = None
    ) -> tuple[Envelope, ...]:
        """Return the envelope of the job for an instant, or those of the flow's jobs. Unless `new_id` makes the ids, they are derived
        from name and instant. If `is_alone` is True, the job gets no key for `overlap`."""
        local = instant_of(instant).astimezone(zone_of(self.zone))
        own = {SCHEDULE: name, SCHEDULED_FOR: f"{local.isoformat()}[{self.zone}]"}
        ids = {old: new_id() if new_id else id_of(name, instant, int.from_bytes(old)) for old in (NO_ID, *(e.id for e in self.templates))}
        envelopes = list[Envelope]()
        for template in self.templates:
            fields: dict[str, Any] = {"id": ids[template.id], "headers": {**template.headers, **own}}
            if template.member is not None:
                fields["member"] = template.member._replace(flow=ids[NO_ID])
                fields["joins"] = tuple([ids[job_id] for job_id in template.joins])
            elif self.overlap != "allow" and not is_alone:
                fields["key"] = hashlib.sha256(b"\0".join((b"", b"", template.queue.encode(), name.encode()))).digest()[:16]
                fields["on_conflict"] = OnConflict.REPLACE if self.overlap == "latest" else OnConflict.KEEP
            envelopes.append(msgspec.structs.replace(template, **fields))
        return tuple(envelopes)


NO_ID: Final = bytes(16)
"""The id in the template of a single job, and a flow's id in its templates. It's fixed so that all processes compute the same digest."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(SchedulePlan).decode


def id_of(name: str, instant: int, number: int = 0) -> bytes:
    """Return the id of a schedule's job or flow for an instant: a UUIDv7 with a hash of name and instant in place of random bits. The jobs
    of a flow have numbers from 1 on."""
    random = int.from_bytes(_digest_of(f"{name}\0{number}" if number else name, instant)[:8], "big") >> 2
    head = (max(instant, 0) // 1_000 << 16) | 0x7000
    return ((head << 64) | 0x8000_0000_0000_0000 | random).to_bytes(16, "big")


def scheduled_for(headers: dict[str, str]) -> datetime | None:
    """Return the time for which a schedule added the job, in the schedule's zone, or None if no schedule added it.
    If this machine does not know the zone, the time has a fixed UTC offset instead."""
    text = headers.get(SCHEDULED_FOR)
    if text is None:
        return None
    instant, _, zone = text.removesuffix("]").partition("[")
    with suppress(ValueError, OverflowError):  # another program may have set the header
        at = datetime.fromisoformat(instant)
        try:
            return at.astimezone(zone_of(zone))
        except ValueError:  # this machine does not have the zone
            return at if at.tzinfo and zone else None
    return None


def firings_of(offer: Offer, plan: SchedulePlan, times: Timetable) -> list[Firing]:
    """Return the steps to take now for a schedule that was offered, at most `MAX_OFFERS`. `times` may be defined by the application."""

    def due_at(instant: int) -> int:
        return instant + plan.delay_of(offer.name, instant)

    def step(expected: int | None, then: int | None, *, missed: int = 0, envelopes: tuple[Envelope, ...] = ()) -> Firing:
        # A schedule with more due instants is offered again immediately, so that it takes turns with other schedules.
        offer_at = None if then is None else min(max(due_at(then), offer.now), LATEST)
        fields: dict[str, Any] = {"next_at": then, "offer_at": offer_at, "envelopes": envelopes, "missed": missed}
        return Firing(name=offer.name, digest=offer.digest, expected=expected, is_alone=plan.overlap != "allow", **fields)

    first = offer.next_at
    if first is None:
        return [step(None, _next(times, offer.since))]
    if due_at(first) > offer.now:  # offered early, for example because the schedule was asleep until now
        return [step(first, first)]
    firing, missed, following = _decide(offer, plan, times, due_at)
    if not firing:
        return [step(first, following, missed=missed)]
    found = list[Firing]()
    if firing[0] != first:
        found.append(step(first, firing[0], missed=missed))
        missed = 0
    for instant, then in pairwise([*firing, following]):
        assert instant is not None
        found.append(step(instant, then, missed=missed, envelopes=plan.envelopes_for(offer.name, instant)))
        missed = 0
    return found


def _decide(offer: Offer, plan: SchedulePlan, times: Timetable, due_at: Callable[[int], int]) -> tuple[list[int], int, int | None]:
    """Return the instants to fire now, how many due instants are skipped, and the next instant after them."""
    at, now, missed = offer.next_at, offer.now, 0
    assert at is not None
    is_late = now - due_at(at) > to_microseconds(PROMPT)
    oldest = -1
    if plan.max_delay is not None:
        oldest = now - to_microseconds(plan.max_delay)
        at, missed = _skip(times, at, oldest - to_microseconds(plan.jitter))
    if at is None or due_at(at) > now:
        return [], missed, at
    if is_late and plan.catch_up != "all":
        latest, following = _latest(times, at, now, due_at)
        missed += _skip(times, at, latest)[1]
        if plan.catch_up == "none":
            oldest = max(oldest, now - to_microseconds(PROMPT))
        return ([], missed + 1, following) if due_at(latest) < oldest else ([latest], missed, following)
    firing, most = list[int](), max(1, (MAX_OFFERS - 1) // len(plan.templates))
    while at is not None and due_at(at) <= now and len(firing) < most:
        if due_at(at) < oldest:
            missed += 1
        else:
            firing.append(at)
        at = _next(times, at)
    return firing, missed, at


def _skip(times: Timetable, at: int, until: int) -> tuple[int | None, int]:
    """Skip the instants from `at` on that are before `until`. Return the next one, and the number skipped, at most `MAX_COUNTED`."""
    skipped, instant = 0, cast("int | None", at)
    while instant is not None and instant < until and skipped < MAX_COUNTED:
        instant = _next(times, instant)
        skipped += 1
    return (_next(times, until - 1) if instant is not None and instant < until else instant), skipped


def _latest(times: Timetable, at: int, now: int, due_at: Callable[[int], int]) -> tuple[int, int | None]:
    """Return the latest due instant and the next one. Timetables only search forward, so try ever earlier starts, but none before `at`."""
    back, latest = MICROSECONDS, _next(times, now - MICROSECONDS)
    while latest is None or due_at(latest) > now:
        back *= 2
        latest = at if now - back < at else _next(times, now - back)
    following = _next(times, latest)
    while following is not None and due_at(following) <= now:
        latest, following = following, _next(times, following)
    return latest, following


def _next(times: Timetable, after: int) -> int | None:
    following = times.next(instant_of(after))
    if following is None:
        return None
    if (at := microseconds_of(following)) <= after:
        raise ValueError(f"next({instant_of(after)}) of its timetable returned {following}, which is not later")
    return at


def _digest_of(name: str, instant: int) -> bytes:
    return hashlib.sha256(f"{name}\0{instant}".encode()).digest()
