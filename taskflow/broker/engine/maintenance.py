"""Upkeep: the changes that become due as time passes. Records locked by another program's open transaction are left to a later call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflow.broker.engine import arrivals, flows, history, moves, schedules, sessions, turns
from taskflow.broker.engine.decisions import UNTAKEN_TIMEOUT, decide, fill, follow, give_back, take_back
from taskflow.broker.engine.draft import Draft, Left, Plain
from taskflow.broker.engine.gates import put, refs_of
from taskflow.broker.engine.job import decode_sent
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import BURIED, HELD, SCHEDULED, Flag
from taskflow.broker.engine.seam import Entry, Fade, Faded, Operation, Promote, Query, Ref, Scan, Snapshot
from taskflow.broker.engine.session import OUTAGE, lapse, record_outage, session_body
from taskflow.broker.protocol import MAX_ENDS, UpkeepResult
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event

MAX_DYING: Final = 100
"""The maximum number of dead sessions that a call checks. It's higher than `MAX_RELEASED`, because other programs' open transactions may
block the leases of the first sessions for a long time."""

MAX_RELEASED: Final = 16
"""The maximum number of dead sessions whose leases a call releases."""

MAX_GONE: Final = 100
MAX_FLOWS: Final = 250
MAX_COUNTED: Final = 10_000
MAX_PAUSED: Final = 100
MAX_STUCK: Final = 16
MIN_IDLE: Final = 10_000_000
"""Microseconds for which a rate is kept once it no longer holds up any job. A rate that isn't used again by then is probably out of use."""


def upkeep(limit: int, ends: bool, rules: Rules) -> Operation[UpkeepResult]:
    """Make the changes that are due, to about `limit` jobs. With `ends`, also return the registered ends: see `take_ends`. One query shows
    which kinds of changes are due; most calls find none."""
    seen: Snapshot = yield Query((OUTAGE,), _scans(limit), (("holding", ()),))
    offered, _, dying, gone, expiring, rolling, to_admit, opened, rates, used, begun, paused, *arrived = seen.scans[_OFFERED:]
    suspects = _suspects(seen, rules)
    reaped = (yield from _reap(suspects, seen, rules)) if suspects else 0
    found = [entry for entries in arrived for entry in entries][:limit]
    taken = (yield from arrivals.take(found, rules)) if found else []
    promoted, _ = yield Promote(limit - len(taken))
    readied = promoted + sum(taken)
    left = limit - promoted - len(taken)
    if _is_due(to_admit, seen.now):
        admitted = yield from _admit(left, rules)
        readied, left = readied + admitted, left - admitted
    if opened:
        readied += yield from fill({entry.ref.id for entry in opened}, rules)
    is_held_up = False
    actions = {action_id: action for action_id, action in flows.actions_in(begun).items() if not action.is_left_in(seen.now)}
    if actions and left > 0:
        acted, is_held_up = yield from follow(Left(actions=actions), rules, left)
        left -= acted
    for entry in paused:
        left -= yield from give_back(entry.ref.id.decode(errors="backslashreplace"), min(MAX_PAUSED, max(0, left)), rules)
    oldest = [group.first for group in seen.groups[0] if group.first is not None and group.first[1] < seen.now - UNTAKEN_TIMEOUT]
    for queue, *_ in oldest[:MAX_STUCK]:
        left -= yield from take_back(queue, min(MAX_PAUSED, max(0, left)), rules)
    is_gone = bool(gone) and gone[0].position[0] < seen.now - to_microseconds(rules.repeat_for)
    released, has_more_dying = (yield from _release(left, rules)) if reaped or dying or is_gone else (0, False)
    left -= released
    expired = (yield from _expire(left, rules)) if released or taken or _is_due(expiring, seen.now) else 0
    left -= expired
    dropped, has_more = yield from _drop(left, rules)
    left -= dropped
    if _is_due(rates, seen.now - MIN_IDLE):
        yield from _forget_rates(rules)
    if _is_due(used, seen.now - turns.IDLE_TTL):
        yield from turns.forget(rules)
    if _is_due(rolling, seen.now):
        yield from history.roll(rules)
    offers = (yield from schedules.offers(rules)) if reaped or dying or _is_due(offered, seen.now) else ()  # a dead session's may be due
    has_moved = bool(suspects or dying or actions or taken or promoted or expired or offers)
    ended, ends_dropped = (yield from take_ends(rules)) if ends and (has_moved or seen.scans[2]) else ((), 0)
    if has_moved or ended:
        seen = yield Query((OUTAGE,), _scans(1, only_next=True))
    is_cut_off = left <= 0 or has_more or has_more_dying
    next_in = _next_in(seen, rules, is_cut_off=is_cut_off, takes_ends=ends, takes_arrivals=all(taken), acts=not is_held_up)
    return UpkeepResult(
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


def _admit(limit: int, rules: Rules) -> Operation[int]:
    """Make due jobs that have gates or a tenant READY, or let them wait at a gate. Return the number of jobs handled."""
    seen: Snapshot = yield Query(scans=(Scan("to_admit", max(0, limit)),))

    def one(draft: Draft, ref: Ref) -> bool:
        job = draft.job(ref.id)
        if job is None or job.header["gate"] is not None or job.header["due_at"] > draft.now:
            return False
        if job.status == SCHEDULED:
            moves.enter(draft, job, Event.DUE)
        elif job.status == HELD and job.header["awaits"] <= 0 and not job.has(Flag.BEHIND):
            moves.release(draft, job)
        return True

    due = [entry.ref for entry in seen.scans[0] if entry.position[0] <= seen.now]
    gates = {ref for entry in seen.scans[0] if entry.record is not None for ref in refs_of(decode_sent(entry.record.sent).limits)}
    return sum((yield from decide(due, one, rules, {*due, *gates}, scans=MOVE_SCANS, locked=False)))


# --- dead sessions --------------------------------------------------------------------------------------------

_SESSION_SCANS: Final = (*MOVE_SCANS, sessions.PULSE, *sessions.LAPSING)
_OFFERED: Final = len(_SESSION_SCANS)


def _scans(arriving: int, *, only_next: bool = False) -> tuple[Scan, ...]:
    """Return the scans of upkeep: those of sessions, then offers, living, dying and gone sessions, expiring jobs, and history. Then come
    jobs to admit, open gates, rates, turns, actions on flows, paused queues, and arrivals. `only_next` leaves out scans that do not show
    when upkeep is due again."""
    names = ("dying", "gone", "expiring", "rolling", "to_admit", "open", "rates", "turns")
    begun = Scan("flows", MAX_FLOWS)
    firsts = (Scan(name, int(not only_next or name in ("to_admit", "open")), with_records=False) for name in names)
    paused = Scan("paused", 0 if only_next else MAX_PAUSED, with_records=False)
    living = Scan("lapsing", MAX_COUNTED, with_records=False)
    return (*_SESSION_SCANS, Scan("offers", 1, with_records=False), living, *firsts, begun, paused, *arrivals.scans(arriving))


def _is_due(first: Sequence[Entry], now: int) -> bool:
    return bool(first) and first[0].position[0] <= now


def _suspects(seen: Snapshot, rules: Rules) -> list[Plain]:
    """Return the sessions that have lapsed or date from before a reboot. `_reap` spares those that an outage of the store kept silent."""
    found = sessions.lapsing(Draft(seen, rules))
    return [session for session in found if session.header["lapses_at"] <= seen.steady or session_body(session).boot != seen.boot]


def _reap(suspects: Sequence[Plain], seen: Snapshot, rules: Rules) -> Operation[int]:
    """Mark lapsed sessions as dead, and return their number. From then on their claims are refused, so the later release of their leases
    can't miss a new one."""
    least_ttl = min(session.header["ttl"] for session in sessions.lapsing(Draft(seen, rules)))
    refs = [session.ref for session in suspects]

    def one(draft: Draft, ref: Ref) -> bool:
        pulse = sessions.pulse_in(draft.seen.scans[3], draft.steady)
        outages = record_outage(draft, least_ttl, pulse)
        session = draft.plain(*ref)
        if session is None or session.header["dead_at"] is not None:
            return False
        lapses_at, is_spared = lapse(session, outages, pulse, draft)
        if lapses_at > draft.steady:
            return False
        sessions.kill(draft, session, None if is_spared else "")
        return True

    return sum((yield from decide(refs, one, rules, [OUTAGE, *refs], scans=_SESSION_SCANS, locked=False)))


def _release(limit: int, rules: Rules) -> Operation[tuple[int, bool]]:
    """Release up to `limit` leases of dead sessions, and forget the sessions that died long ago. Return the number of leases released, and
    True if some dead sessions were not reached."""
    seen: Snapshot = yield Query(scans=(Scan("dying", MAX_DYING, with_records=False), Scan("gone", MAX_GONE, with_records=False)))
    released = sessions_released = 0
    has_more = False
    for entry in seen.scans[0]:
        has_more = released >= limit or sessions_released == MAX_RELEASED
        if has_more:
            break
        number, is_done = yield from sessions.release(entry.ref.id, rules, limit - released)
        released += number
        sessions_released += is_done
    long_ago = seen.now - to_microseconds(rules.repeat_for)
    gone = [entry.ref for entry in seen.scans[1] if entry.position[0] < long_ago]
    yield from decide(gone, _forget, rules, gone, locked=False)
    return released, has_more


def _forget_rates(rules: Rules) -> Operation[None]:
    """Forget rates that have held up no job for the last `MIN_IDLE` microseconds."""
    seen: Snapshot = yield Query(scans=(Scan("rates", MAX_COUNTED, with_records=False),))

    def one(draft: Draft, ref: Ref) -> None:
        gate = draft.plain(*ref)
        if gate is not None and gate.header["tat"] is not None and gate.header["tat"] < draft.now - MIN_IDLE:
            gate.header["tat"] = None
            put(draft, gate)

    idle = [entry.ref for entry in seen.scans[0] if entry.position[0] < seen.now - MIN_IDLE]
    yield from decide(idle, one, rules, idle, locked=None)


def _forget(draft: Draft, ref: Ref) -> bool:
    is_there = draft.plain(*ref) is not None
    if is_there:
        draft.drop(ref)
    return is_there


# --- expiry and retention -------------------------------------------------------------------------------------


def _expire(limit: int, rules: Rules) -> Operation[int]:
    seen: Snapshot = yield Query(scans=(Scan("expiring", max(0, limit), with_records=False),))

    def one(draft: Draft, ref: Ref) -> bool:
        job = draft.job(ref.id)
        if job is None or not job.is_waiting or job.header["expires_at"] is None or job.header["expires_at"] > draft.now:
            return False
        moves.finish(draft, job, Event.EXPIRE, Status.CANCELLED, wording.EXPIRED)
        return True

    due = [entry.ref for entry in seen.scans[0] if entry.position[0] <= seen.now]
    return sum((yield from decide(due, one, rules, due, scans=MOVE_SCANS, locked=False)))


def _drop(limit: int, rules: Rules) -> Operation[tuple[int, bool]]:
    """Drop ended jobs that have been kept long enough or exceed the cap, and forget jobs that no resent call can refer to any more. Return
    the number of jobs dropped, and whether more remain."""
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
    buried = yield from decide(tied, one, rules, tied, scans=MOVE_SCANS, locked=False)
    return faded.buried + sum(buried), faded.has_more


# --- ends without a settlement --------------------------------------------------------------------------------


def take_ends(rules: Rules) -> Operation[tuple[tuple[bytes, ...], int]]:
    """Remove the oldest registered ends (of jobs that ended without a settlement), and return the jobs' ids. If there are too many, drop
    the surplus first. Also return how many were dropped."""
    seen: Snapshot = yield Query(scans=(Scan("ends", rules.max_ends + MAX_ENDS, with_records=False),))
    surplus = max(0, len(seen.scans[0]) - rules.max_ends)
    refs = [entry.ref for entry in seen.scans[0][: surplus + MAX_ENDS]]
    taken = yield from decide(refs, _forget, rules, refs, locked=False)
    ended = tuple(ref.id for ref, is_taken in zip(refs[surplus:], taken[surplus:], strict=True) if is_taken)
    return ended, sum(taken[:surplus])


# --- when to run again ----------------------------------------------------------------------------------------


def _next_in(seen: Snapshot, rules: Rules, *, is_cut_off: bool, takes_ends: bool, takes_arrivals: bool, acts: bool) -> float:
    """Return the seconds until the caller's next upkeep. With n living sessions, each calls upkeep every n * `upkeep_every` seconds, or
    earlier if a job becomes due or a session lapses. `takes_arrivals` is False if an open transaction blocks some arrivals, and `acts` is
    False if one blocks an action on a flow."""
    offered, living, _, _, _, _, to_admit, opened, _, _, begun, *_ = seen.scans[_OFFERED:]
    if is_cut_off or opened or (takes_ends and seen.scans[2]) or (takes_arrivals and any(seen.scans[-2:])):
        return 0.0
    waits = [to_seconds(entries[0].position[0] - seen.now) for entries in (seen.scans[0], offered, to_admit) if entries]
    waits += [to_seconds(action.is_left_in(seen.now)) for action in flows.actions_in(begun if acts else ()).values()]
    waits += [rules.upkeep_every * max(1, len(living)), *sessions.lapses(Draft(seen, rules))]
    return max(0.0, min(waits))
