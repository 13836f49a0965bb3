"""Sessions: registration, claims, heartbeats, and the release of a dead session's leases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from taskflow.broker.engine import arrivals, moves, schedules
from taskflow.broker.engine.decisions import UNTAKEN_TIMEOUT, decide
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.job import Job, claim_id, text_bytes
from taskflow.broker.engine.job_pauses import PAUSED, names_in
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import RUNNING, Kind
from taskflow.broker.engine.seam import Claimed, Entry, Operation, Query, Ref, Scan, Snapshot
from taskflow.broker.engine.session import OUTAGE, lapse, new_session, outages_of, record_beat, record_outage, session_body, set_body
from taskflow.model import wording
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.ids import ID_BYTES
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer, Report, Session, WorkHint
from taskflow.model.stored_values import packed
from taskflow.model.transitions import Event, Transition

MAX_LEASES: Final = 100_000
"""The maximum number of leases of one session that a heartbeat checks."""

PULSE: Final = Scan("beats", 64, with_records=False)
"""Finds the latest heartbeats across all sessions. A dead session's count too, because they show that the store was available."""

MAX_LAPSING: Final = 16
LAPSING: Final = (Scan("lapsing", MAX_LAPSING), Scan("lapsing", MAX_LAPSING, backwards=True))
"""Find the sessions that lapse first, and those that lapse last. After a reboot, the latter date from before the reboot."""

LAPSED: Final = Scan("lapsing", 1)
"""Finds the session that lapses first. Heartbeats and registrations check whether it has lapsed."""


def pulse_in(entries: Sequence[Entry], steady: int) -> int | None:
    """Return the steady time of the last heartbeat that `PULSE` found, or None. Times in the future date from before a reboot, and are
    ignored. The first registration after the boot replaces them with 0."""
    return next((-entry.position[0] for entry in entries if 0 < -entry.position[0] <= steady), None)


def _least_ttl(draft: Draft, ttl: int) -> int:
    """Return `ttl`, or the ttl of the session that `LAPSED` found if that session has lapsed and its ttl is shorter. The reason is that the
    new heartbeat hides the silence in which that session lapsed."""
    first = draft.seen.scans[len(MOVE_SCANS) + 1]
    header = first[0].record.header if first and first[0].record is not None else {}
    return min(ttl, header["ttl"]) if header and header["lapses_at"] <= draft.steady else ttl


MAX_BURIED: Final = 16
"""The maximum number of unknown sessions for which a new session adds a record. Later sessions add the others."""


def of_session(index: str, session: bytes, limit: int = MAX_LEASES) -> Scan:
    """Return a scan of a session's leases in the index "leases" (all) or "marked" (those of jobs asked to stop)."""
    return Scan(index, limit, (session,), with_records=False)


# --- register, claim ------------------------------------------------------------------------------------------


def register(session: Session, rules: Rules) -> Operation[tuple[str, ...]]:
    """Add a session, or update the description of a known one. Return the paused job names. Raises SessionLost if the session is dead."""

    def one(draft: Draft, session: Session) -> tuple[str, ...] | None:
        beats = _of_this_boot(draft, draft.seen.scans[len(MOVE_SCANS)])
        record_outage(draft, _least_ttl(draft, to_microseconds(session.ttl)), pulse_in(beats, draft.steady))
        known = draft.plain(Kind.SESSION, session.id)
        if known is None:
            draft.put(new_session(session, draft))
        elif known.header["dead_at"] is None:
            set_body(known, msgspec.structs.replace(session_body(known), about=session.pack_about()))
            draft.put(known)
        is_alive = known is None or known.header["dead_at"] is None
        return names_in(draft.seen.records[PAUSED]) if is_alive else None

    refs = [Ref(Kind.SESSION, session.id), OUTAGE, PAUSED]
    [paused] = yield from decide([session], one, rules, refs, scans=(*MOVE_SCANS, PULSE._replace(with_records=True), LAPSED))
    if paused is None:
        raise SessionLost(wording.session_reaped(session.name))
    yield from _bury_unknown(rules)
    return paused


def _of_this_boot(draft: Draft, beats: Sequence[Entry]) -> list[Entry]:
    """Return the heartbeats of sessions registered since this boot, and clear older ones. The clock restarts at boot, so their times would
    soon look current. The first operation after a boot registers a session, so no other operation has to check for old heartbeats."""
    found = list[Entry]()
    for entry in beats:
        assert entry.record is not None
        if session_body(Plain(entry.ref, entry.record.header, entry.record.state)).boot == draft.seen.boot:
            found.append(entry)
        elif entry.record.header["beat_at"] and (session := draft.plain(*entry.ref)) is not None:
            session.header["beat_at"] = 0
            draft.put(session)
    return found


def _bury_unknown(rules: Rules) -> Operation[None]:
    """Add the record of a dead session for each session that has leases but no record, so that upkeep releases the leases. Such leases
    exist only if another program has changed the store, for example by deleting a row. Each new session checks for them."""
    leases: Snapshot = yield Query(groups=(("leases", ()),))
    refs = [Ref(Kind.SESSION, group.prefix[0]) for group in leases.groups[0] if len(group.prefix[0]) == ID_BYTES]
    if not refs:
        return
    known: Snapshot = yield Query(tuple(refs))

    def one(draft: Draft, ref: Ref) -> None:
        if draft.plain(*ref) is None:
            kill(draft, new_session(Session(id=ref.id, name="unknown"), draft), None)

    unknown = [ref for ref in refs if known.records[ref] is None][:MAX_BURIED]
    yield from decide(unknown, one, rules, unknown)


def leases_of(claimed: Claimed | None) -> list[Lease]:
    if claimed is None:
        raise SessionLost(wording.SESSION_LOST)
    return [Job.lease_of(record, claimed.now) for record in claimed.records]


# --- beat -----------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """A session's leases as a heartbeat finds them. `held` maps claims to jobs; `stopping` contains the claims of jobs asked to stop."""

    held: Mapping[ClaimId, bytes]
    stopping: frozenset[ClaimId]


def beat(beat: Beat, rules: Rules) -> Operation[BeatAnswer]:
    seen, work_hint = yield from _extend(beat, rules)
    leases = _Seen(
        {claim_id(*entry.position): entry.ref.id for entry in seen.scans[-2]},
        frozenset(claim_id(*entry.position) for entry in seen.scans[-1]),
    )
    ghosts = 0
    reports = [report for report in beat.reports if report.claim in leases.held]
    refs = [Ref(Kind.JOB, leases.held[report.claim]) for report in reports]
    yield from decide(reports, _reporter(leases), rules, refs, locked=False)
    named = set(beat.claims)
    doubted = [claim for claim in leases.held if claim not in named and claim.request <= beat.seen]
    if doubted:
        ghosts = yield from _return_ghosts(doubted, leases, rules)
    if beat.leaving or beat.died_of:
        yield from release(beat.session, rules)
        leases = _Seen({}, frozenset())
    return BeatAnswer(
        lost=tuple(claim for claim in beat.claims if claim not in leases.held),
        stopping=tuple(claim for claim in beat.claims if claim in leases.stopping),
        ghosts=ghosts,
        work_hint=work_hint,
        paused_jobs=names_in(seen.records[PAUSED]),
    )


def _extend(beat: Beat, rules: Rules) -> Operation[tuple[Snapshot, WorkHint | None]]:
    """Record the heartbeat, and the death of a session that leaves or has died. Raises SessionLost if the session is unknown or dead.

    Return the snapshot taken before, whose last scans are the session's leases and the marked ones, and the work hint if `beat.looks`.
    """

    def one(draft: Draft, beat: Beat) -> tuple[Snapshot, WorkHint | None] | None:
        session = draft.plain(Kind.SESSION, beat.session)
        ttl = to_microseconds(rules.session_ttl) if session is None else session.header["ttl"]
        record_outage(draft, _least_ttl(draft, ttl), pulse_in(draft.seen.scans[len(MOVE_SCANS)], draft.steady))
        if session is None or session.header["dead_at"] is not None:
            return None
        record_beat(session, draft.steady)
        if beat.leaving or beat.died_of:
            kill(draft, session, beat.died_of or None)
        draft.put(session)
        return draft.seen, _work_hint(draft, session) if beat.looks else None

    refs = [Ref(Kind.SESSION, beat.session), OUTAGE, PAUSED]
    leases = of_session("leases", beat.session), of_session("marked", beat.session)
    scans = (*MOVE_SCANS, PULSE, *(_LOOK if beat.looks else (LAPSED,)), *leases)
    groups = (("ready", ()), ("holding", ())) if beat.looks else ()
    [answer] = yield from decide([beat], one, rules, refs, scans=scans, groups=groups)
    if answer is None:
        raise SessionLost(wording.SESSION_LOST)
    return answer


def _reporter(leases: _Seen) -> Callable[[Draft, Report], bool]:
    def one(draft: Draft, report: Report) -> bool:
        job = draft.job(leases.held[report.claim])
        if job is None or not job.holds(report.claim):
            return False
        job.header["started_at"] = draft.now - to_microseconds(report.running_for)
        if report.progress is not None:
            job.set_progress(packed([report.progress.fraction, report.progress.note]))
        draft.put(job)
        return True

    return one


def _return_ghosts(claims: Sequence[ClaimId], leases: _Seen, rules: Rules) -> Operation[int]:
    """Requeue, in their old places, the jobs of these leases that are older than `ghost_after`. Return the number of jobs."""

    def one(draft: Draft, claim: ClaimId) -> bool:
        job = draft.job(leases.held[claim])
        if job is None or not job.holds(claim):
            return False
        if draft.steady - job.header["claimed_steady"] < to_microseconds(rules.ghost_after):
            return False
        moves.requeue(draft, job, Transition(Event.GHOST, job.counters))
        return True

    refs = [Ref(Kind.JOB, leases.held[claim]) for claim in claims]
    returned = yield from decide(claims, one, rules, refs, scans=MOVE_SCANS, locked=False)
    return sum(returned)


_LOOK: Final = (
    *LAPSING,
    Scan("dying", 1, with_records=False),
    Scan("offers", 1, with_records=False),
    Scan("expiring", 1, with_records=False),
    Scan("fading", 1, with_records=False),
    Scan("paused", MAX_LEASES, with_records=False),
    Scan("to_admit", 1, with_records=False),
    Scan("open", 1, with_records=False),
    Scan("flows", 1, with_records=False),
    Scan("gated", 1, with_records=False),
    *arrivals.scans(1),
)
"""The scans of a heartbeat that asks for a work hint. They follow the scans of moves and `PULSE`."""


def _work_hint(draft: Draft, session: Plain) -> WorkHint:
    """Return whether jobs are ready, and in how many seconds upkeep has work, for a session whose heartbeat is in the draft."""
    seen = draft.seen
    dying, offers, expiring, fading, paused, limited, opened, begun, gated, *arriving = seen.scans[6:-2]
    has_ends = bool(seen.scans[2]) and bool(session.header["wants_ends"])
    names = {entry.ref.id.decode(errors="backslashreplace") for entry in paused}
    waits = [to_seconds(entries[0].position[0] - seen.now) for entries in (seen.scans[0], offers, expiring, fading, limited) if entries]
    waits += lapses(draft, session)
    if gated:  # waiting jobs may get the slots of jobs that no worker claims
        waits += [to_seconds(group.first[1] + UNTAKEN_TIMEOUT - seen.now) for group in seen.groups[1] if group.first is not None]
    return WorkHint(
        is_ready=any(group.prefix[0] not in names for group in seen.groups[0]),
        due_in=0.0 if dying or has_ends or opened or begun or any(arriving) else max(0.0, min(waits, default=math.inf)),
    )


def lapses(draft: Draft, beating: Plain | None = None) -> list[float]:
    """For each session found by `LAPSING`, return the number of seconds until it lapses. The draft's scans must begin with `MOVE_SCANS`,
    `PULSE` and `LAPSING`. `beating` is the current record of a session that sent a heartbeat after the scans were read."""
    outages = outages_of(draft)
    pulse = draft.steady if beating is not None else pulse_in(draft.seen.scans[3], draft.steady)
    found = [beating if beating is not None and session.ref == beating.ref else session for session in lapsing(draft)]
    return [max(0.0, to_seconds(lapse(session, outages, pulse, draft)[0] - draft.steady)) for session in found]


def lapsing(draft: Draft) -> list[Plain]:
    """Return the sessions found by `LAPSING`, without duplicates."""
    found = {entry.ref: entry.record for entries in draft.seen.scans[4:6] for entry in entries}
    return [Plain(ref, dict(record.header), record.state) for ref, record in found.items() if record is not None]


# --- the end of a session -------------------------------------------------------------------------------------


def kill(draft: Draft, session: Plain, died_of: str | None) -> None:
    """Mark a session as dead. `died_of` is the reason why its leases count as crashes, or None if they are handed back.

    The session's body stores the reason for the later calls that release the leases.
    """
    session.header |= {"dead_at": draft.now, "is_released": 0}
    set_body(session, msgspec.structs.replace(session_body(session), died_of=text_bytes(died_of)))
    draft.put(session)


_HELD_UP: Final = -1


def release(session_id: bytes, rules: Rules, limit: int = MAX_LEASES) -> Operation[tuple[int, bool]]:
    """Release at most `limit` leases of a dead session, and hand over its schedules. Leases blocked by another program's open transaction
    are left to a later call. Return the number of leases released, and True if nothing is left to do."""
    seen: Snapshot = yield Query((Ref(Kind.SESSION, session_id),), (of_session("leases", session_id, limit),))
    record = seen.records[Ref(Kind.SESSION, session_id)]
    if record is None:
        return 0, True
    died_of = session_body(Plain(record.ref, dict(record.header), record.state)).died_of

    def one(draft: Draft, job_id: bytes) -> int:
        job = draft.job(job_id)
        if job is None or job.status != RUNNING or job.header["session"] != session_id:
            return 0
        if died_of is None:
            moves.hand_back(draft, job, counts=True)
        else:
            moves.crash(draft, job, died_of.decode(errors="surrogatepass"))
        return 1

    ids = [entry.ref.id for entry in seen.scans[0]]
    refs = [Ref(Kind.SESSION, session_id), *(Ref(Kind.JOB, job_id) for job_id in ids)]
    released = yield from decide(ids, one, rules, refs, scans=MOVE_SCANS, locked=_HELD_UP)
    has_handed_over = yield from schedules.hand_over(session_id, rules)
    is_done = len(ids) < limit and _HELD_UP not in released and has_handed_over
    if is_done:
        yield from _finish_release(session_id, rules)
    return released.count(1), is_done


def _finish_release(session_id: bytes, rules: Rules) -> Operation[None]:
    def one(draft: Draft, session_id: bytes) -> None:
        session = draft.plain(Kind.SESSION, session_id)
        if session is not None and session.header["dead_at"] is not None and not session.header["is_released"]:
            session.header["is_released"] = 1
            draft.put(session)

    yield from decide([session_id], one, rules, [Ref(Kind.SESSION, session_id)])
