"""Upkeep: what time has made necessary."""

from __future__ import annotations

from typing import Final

from taskflow.broker.engine import moves, schedules, sessions
from taskflow.broker.engine.bodies import OUTAGE, lapse, note_outage, session_body
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.moves import MOVE_SCANS, decide
from taskflow.broker.engine.records import BURIED
from taskflow.broker.engine.seam import Fade, Faded, Operation, Promote, Query, Ref, Scan, Snapshot
from taskflow.broker.protocol import MAX_ENDS, Upkept
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event

MOST_DYING: Final = 16
MOST_GONE: Final = 100
MOST_COUNTED: Final = 10_000


def upkeep(limit: int, ends: bool, rules: Rules) -> Operation[Upkept]:
    reaped = yield from _reap(rules)
    readied, _ = yield Promote(limit)
    left = limit - readied
    released = yield from _release(left, rules)
    left -= released
    expired = yield from _expire(left, rules)
    left -= expired
    dropped, has_more = yield from _drop(left, rules)
    left -= dropped
    offers = yield from schedules.offers(rules)
    ended, ends_dropped = (yield from take_ends(rules)) if ends else ((), 0)
    next_in = yield from _next_in(rules, is_cut_off=left <= 0 or has_more, takes_ends=ends)
    return Upkept(
        readied=readied,
        reaped=reaped,
        released=released,
        expired=expired,
        dropped=dropped,
        next_in=next_in,
        offers=offers,
        ended=ended,
        ends_dropped=ends_dropped,
    )


# --- dead sessions --------------------------------------------------------------------------------------------

_SESSION_SCANS: Final = (*MOVE_SCANS, sessions.PULSE, *sessions.LAPSING)


def _reap(rules: Rules) -> Operation[int]:
    """Mark lapsed sessions as dead, and return their number. From then on their claims are refused, so no new lease can be missed when
    their leases are released."""
    seen: Snapshot = yield Query((OUTAGE,), _SESSION_SCANS)
    draft = Draft(seen, rules)
    pulse = sessions.pulse_in(seen.scans[3], seen.steady)
    found = sessions.lapsing(draft)
    least_ttl = min((session.header["ttl"] for session in found), default=0)
    suspects = [session.ref for session in found if session.header["lapses_at"] <= seen.steady or session_body(session).boot != seen.boot]
    if not suspects:
        return 0

    def one(draft: Draft, ref: Ref) -> bool:
        outages = note_outage(draft, least_ttl, pulse)
        session = draft.plain(*ref)
        if session is None or session.header["dead_at"] is not None:
            return False
        lapses_at, is_spared = lapse(session, outages, pulse, draft)
        if lapses_at > draft.steady:
            return False
        sessions.kill(draft, session, None if is_spared else "")
        return True

    return sum((yield from decide(suspects, one, rules, [OUTAGE, *suspects], scans=_SESSION_SCANS)))


def _release(limit: int, rules: Rules) -> Operation[int]:
    seen: Snapshot = yield Query(scans=(Scan("dying", MOST_DYING, with_records=False), Scan("gone", MOST_GONE, with_records=False)))
    released = 0
    for entry in seen.scans[0]:
        released += yield from sessions.release(entry.ref.id, rules, max(0, limit - released))
    long_ago = seen.now - to_microseconds(rules.repeat_for)
    gone = [entry.ref for entry in seen.scans[1] if entry.position[0] < long_ago]
    yield from decide(gone, _forget, rules, gone)
    return released


def _forget(draft: Draft, ref: Ref) -> None:
    if draft.plain(*ref) is not None:
        draft.drop(ref)


# --- expiry and keeping ---------------------------------------------------------------------------------------


def _expire(limit: int, rules: Rules) -> Operation[int]:
    seen: Snapshot = yield Query(scans=(Scan("expiring", max(0, limit), with_records=False),))

    def one(draft: Draft, ref: Ref) -> bool:
        job = draft.job(ref.id)
        if job is None or not job.is_waiting or job.header["expires_at"] is None or job.header["expires_at"] > draft.now:
            return False
        moves.finish(draft, job, Event.EXPIRE, Status.CANCELLED, wording.EXPIRED)
        return True

    due = [entry.ref for entry in seen.scans[0] if entry.position[0] <= seen.now]
    return sum((yield from decide(due, one, rules, due, scans=MOVE_SCANS)))


def _drop(limit: int, rules: Rules) -> Operation[tuple[int, bool]]:
    """Drop ended jobs that have been kept long enough or are too many, and forget those that no resent call can refer to any more. Return
    how many it has dropped, and whether there are more."""
    if limit <= 0:
        return 0, True
    faded: Faded = yield Fade(limit, rules.kept_per_queue, to_microseconds(rules.repeat_for))

    def one(draft: Draft, ref: Ref) -> bool:
        job = draft.job(ref.id)
        if job is None or job.is_live or job.header["ended_at"] is None or job.status == BURIED:
            return False
        if faded.left[ref]:
            draft.count(job.queue, wording.DROPPED_OVER_CAP)
        moves.bury(draft, job)
        return True

    tied = list(faded.left)
    buried = yield from decide(tied, one, rules, tied, scans=MOVE_SCANS)
    return faded.buried + sum(buried), faded.has_more


# --- ends without a settlement --------------------------------------------------------------------------------


def take_ends(rules: Rules) -> Operation[tuple[tuple[bytes, ...], int]]:
    """Remove and return the first ends that were noted. If too many were noted, drop the oldest before that, and return their number."""
    seen: Snapshot = yield Query(scans=(Scan("ends", rules.most_ends + MAX_ENDS, with_records=False),))

    def one(draft: Draft, ref: Ref) -> bool:
        is_there = draft.plain(*ref) is not None
        if is_there:
            draft.drop(ref)
        return is_there

    surplus = max(0, len(seen.scans[0]) - rules.most_ends)
    refs = [entry.ref for entry in seen.scans[0][: surplus + MAX_ENDS]]
    taken = yield from decide(refs, one, rules, refs)
    ended = tuple(ref.id for ref, is_taken in zip(refs[surplus:], taken[surplus:], strict=True) if is_taken)
    return ended, sum(taken[:surplus])


# --- when to come again ---------------------------------------------------------------------------------------


def _next_in(rules: Rules, *, is_cut_off: bool, takes_ends: bool) -> Operation[float]:
    """Return the seconds until the caller's next upkeep. With n living sessions, each calls it every n * `upkeep_every` seconds, or earlier
    if a job becomes due or a session lapses."""
    scans = (*_SESSION_SCANS, Scan("offers", 1, with_records=False), Scan("lapsing", MOST_COUNTED, with_records=False))
    seen: Snapshot = yield Query((OUTAGE,), scans)
    if is_cut_off or (takes_ends and seen.scans[2]):
        return 0.0
    waits = [to_seconds(entries[0].position[0] - seen.now) for entries in (seen.scans[0], seen.scans[6]) if entries]
    waits += [rules.upkeep_every * max(1, len(seen.scans[7])), *sessions.lapses(Draft(seen, rules))]
    return max(0.0, min(waits))
