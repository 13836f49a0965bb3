"""Packs sessions and heartbeats into arguments for the functions in session.sql, and decodes their answers."""

from __future__ import annotations

import math
from typing import Any

from taskflow.broker.postgres.packing import NO_CLAIM, is_possible_claim, pack_progress, storable_text, utf8
from taskflow.broker.postgres.rows import Row
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.failure_cause import pack_cause
from taskflow.model.session import Beat, BeatAnswer, Outlook, Session, SessionRecord, session_record_of


def session_columns(session: Session) -> list[Any]:
    """Return the arguments of register(): id, name, ttl, about, wants_ends, deploy."""
    return [
        session.id,
        storable_text(session.name),
        to_microseconds(session.ttl),
        session.pack_about(),
        session.wants_ends,
        pack_cause(b"", session.deploy),
    ]


def beat_columns(beat: Beat) -> list[Any]:
    """Return the arguments of beat() (see session.sql): requests and numbers of the claims; seen; requests, numbers, run times in
    microseconds and progress of the reports; leaving, died_of, looks, and the fingerprint of died_of."""
    reports = [report for report in beat.reports if is_possible_claim(report.claim, beat.session)]
    own = [claim if is_possible_claim(claim, beat.session) else NO_CLAIM for claim in beat.claims]
    return [
        [claim.request for claim in own],
        [claim.number for claim in own],
        beat.seen,
        [report.claim.request for report in reports],
        [report.claim.number for report in reports],
        [to_microseconds(report.running_for) for report in reports],
        [pack_progress(report.progress) for report in reports],
        beat.leaving,
        utf8(beat.died_of) if beat.died_of else None,
        beat.looks,
        beat.poison_fingerprint,
    ]


def beat_answer(beat: Beat, row: Row) -> BeatAnswer:
    """Decode the answer of beat() for a session that is not lost."""
    held, stopping, due_in = set(row["held"] or ()), set(row["stopping"] or ()), row["due_in"]
    return BeatAnswer(
        lost=tuple(claim for place, claim in enumerate(beat.claims, 1) if place not in held),
        stopping=tuple(claim for place, claim in enumerate(beat.claims, 1) if place in stopping),
        ghosts=row["ghosts"],
        outlook=Outlook(row["is_ready"], math.inf if due_in is None else to_seconds(due_in)) if beat.looks else None,
    )


def record_of_session(row: Row) -> SessionRecord:
    return session_record_of(
        id=row["session"],
        name=row["session_name"],
        ttl=to_seconds(row["session_ttl"] or 0),
        about=row["session_about"],
        registered_at=row["registered"],
        silent_for=row["silent_for"] or 0,
        leases=row["leases"],
        is_dying=row["is_dying"],
    )
