"""Packs sessions and heartbeats into arguments for the scripts in session.lua, and decodes their replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.redis.fields import TAIL_BYTES
from taskflow.broker.redis.jobs import UNKNOWN, shown
from taskflow.broker.redis.packing import can_be, claim_of, pack, pack_progress, pack_tail, unpack
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.envelope import ClaimId
from taskflow.model.session import Beat, BeatAnswer, Outlook, Session, SessionRecord, session_record_of

LONGEST_NAME: Final = 250
"""The maximum length of a worker's name. It is limited because each job that the worker runs contains it."""


def pack_session(session: Session) -> bytes:
    """Pack a session for the script `register`."""
    return pack([session.id, session.name[:LONGEST_NAME], to_microseconds(session.ttl), session.pack_about(), session.wants_ends])


# --- heartbeats -----------------------------------------------------------------------------------------------------


def pack_beat(beat: Beat) -> bytes:
    """Pack a heartbeat for the script `beat`, leaving out claims that no store could have given to the session."""
    own = [claim for claim in beat.claims if can_be(claim, beat.session)]
    reports = [
        (pack_tail(report.claim), to_microseconds(report.running_for), pack_progress(report.progress))
        for report in beat.reports
        if can_be(report.claim, beat.session)
    ]
    died_of = (beat.died_of or False, beat.looks, beat.poison_fingerprint or False)
    return pack([beat.session, b"".join(map(pack_tail, own)), beat.seen, reports, beat.leaving, *died_of])


def beat_answer(beat: Beat, reply: Sequence[Any]) -> BeatAnswer:
    """Decode the reply of the script `beat`."""
    ghosts, *packed = reply[:3]
    lost, stopping = (_claims_in(tails, beat.session) for tails in packed)
    return BeatAnswer(
        lost=tuple(claim for claim in beat.claims if claim in lost or not can_be(claim, beat.session)),
        stopping=tuple(claim for claim in beat.claims if claim in stopping),
        ghosts=ghosts,
        outlook=Outlook(bool(reply[3]), math.inf if reply[4] < 0 else to_seconds(reply[4])) if reply[3:] else None,
    )


def _claims_in(packed: bytes, session: bytes) -> set[ClaimId]:
    return {claim_of(session, packed[first : first + TAIL_BYTES]) for first in range(0, len(packed), TAIL_BYTES)}


# --- for the console ------------------------------------------------------------------------------------------------


def session_records(packed: bytes) -> list[SessionRecord]:
    """Decode the reply of the script `workers`. A field that cannot be read gets its default."""
    return sorted(map(_session_record, unpack(packed) or ()), key=lambda record: (record.session.name, record.session.id))


def _session_record(row: list[Any]) -> SessionRecord:
    session_id, name, ttl, about, registered_at, silent_for, leases, is_dying = row
    return session_record_of(
        id=session_id,
        name=shown(name) if isinstance(name, bytes) else UNKNOWN,
        ttl=to_seconds(ttl),
        about=about,
        registered_at=registered_at,
        silent_for=silent_for,
        leases=leases,
        is_dying=is_dying,
    )
