"""Sessions as the engine handles them: their bodies, when they lapse, and the outages of the store that don't count against them."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Ref
from taskflow.model.clock import to_microseconds, to_seconds
from taskflow.model.session import Session, SessionRecord, session_record_of

OUTAGE: Final = Ref(Kind.MARK, b"outage")


class SessionBody(msgspec.Struct, array_like=True):
    """The fields of a session that aren't in its header.

    `about`    the fields that stores only display: see `Session.pack_about`
    `boot`     the boot from which its steady times count
    `died_of`  for a dead session: why each of its leases counts as a crash, in UTF-8; None if they are handed back
    """

    about: bytes
    registered_at: int
    boot: bytes
    died_of: bytes | None = None


class Outage(msgspec.Struct, array_like=True):
    """A period of more than two thirds of a session's ttl in which no session sent a heartbeat. Its times are by the steady clock.

    `began`  the time of the last heartbeat before the period
    `noted`  when the outage was noticed
    `until`  the latest time that is known to belong to the period
    """

    began: int
    noted: int
    until: int


Outages = list[Outage]
"""The last outages since the boot, oldest first."""

MAX_OUTAGES: Final = 16
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_session: Final = msgspec.msgpack.Decoder(SessionBody).decode
_decode_outages: Final = msgspec.msgpack.Decoder(tuple[bytes, Outages]).decode


def session_body(session: Plain) -> SessionBody:
    """Decode the body of a session. An undecodable body counts as empty."""
    try:
        return _decode_session(session.state) if isinstance(session.state, bytes) else SessionBody(b"", 0, b"")
    except msgspec.MsgspecError:
        return SessionBody(b"", 0, b"")


def set_body(session: Plain, body: SessionBody) -> None:
    session.state = _encode(body)


def new_session(session: Session, draft: Draft) -> Plain:
    ttl = to_microseconds(session.ttl)
    header: dict[str, Any] = {"name": session.name, "ttl": ttl, "wants_ends": int(session.wants_ends), "is_released": 0, "dead_at": None}
    record = Plain(Ref(Kind.SESSION, session.id), header)
    record_beat(record, draft.steady)
    set_body(record, SessionBody(session.pack_about(), draft.now, draft.seen.boot))
    return record


def record_beat(session: Plain, steady: int) -> None:
    session.header |= {"beat_at": steady, "lapses_at": steady + session.header["ttl"] + 1}


def record_of_session(session: Plain, leases: int, silent_for: int) -> SessionRecord:
    body, header = session_body(session), session.header
    return session_record_of(
        id=session.ref.id,
        name=header["name"],
        ttl=to_seconds(header["ttl"]),
        about=body.about,
        registered_at=body.registered_at,
        silent_for=silent_for,
        leases=leases,
        is_dying=header["dead_at"] is not None,
    )


# --- outages --------------------------------------------------------------------------------------------------


def outages_of(draft: Draft) -> Outages:
    record = draft.plain(*OUTAGE)
    try:
        boot, outages = _decode_outages(record.state) if record is not None and isinstance(record.state, bytes) else (b"", [])
    except msgspec.MsgspecError:
        return []
    return [each for each in outages if each.until <= draft.steady] if boot == draft.seen.boot else []  # a server's clock may be set back


def record_outage(draft: Draft, ttl: int, pulse: int | None) -> Outages:
    """Register an outage if no session has sent a heartbeat for two thirds of `ttl`. Return all outages that are known.

    `pulse` is the steady time of the last heartbeat, or None. A heartbeat hides the silence before it, so the step that writes the
    heartbeat also registers the silence.
    """
    outages = outages_of(draft)
    if pulse is None:
        return outages
    if outages:
        pulse = max(pulse, outages[-1].began)  # the session that sent this last heartbeat may have been forgotten since
    if draft.steady - pulse <= ttl * 2 // 3:
        return outages
    if outages and outages[-1].began == pulse:
        outages[-1].until = draft.steady
    else:
        outages.append(Outage(pulse, draft.steady, draft.steady))
    draft.put(Plain(OUTAGE, {}, _encode((draft.seen.boot, outages[-MAX_OUTAGES:]))))
    return outages


def lapse(session: Plain, outages: Outages, pulse: int | None, draft: Draft) -> tuple[int, bool]:
    """Return when a session lapses by the steady clock, and whether its leases are handed back then rather than counted as crashes.

    If the store was unavailable, or the machine rebooted, the worker isn't to blame. After an outage, the session gets one more ttl. An
    outage begins with the last heartbeat of any session. This session's own last heartbeat may be up to a third of a ttl older, because
    workers send three per ttl.
    """
    header = session.header
    if session_body(session).boot != draft.seen.boot:
        return 0, True
    beat_at, ttl = header["beat_at"], header["ttl"]
    for outage in outages:
        goes_on = outage is outages[-1] and (pulse or 0) <= outage.began
        silent_until = draft.steady if goes_on else outage.until
        if beat_at <= outage.began and silent_until - beat_at > ttl and silent_until - outage.began > ttl * 2 // 3:
            return max(outage.noted, beat_at + ttl) + ttl + 1, True
    lapses_at: int = header["lapses_at"]
    return lapses_at, False
