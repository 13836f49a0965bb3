"""Converts answers of PostgreSQL's functions in a caller's transaction."""

from __future__ import annotations

from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope


def added_or_refused(envelope: Envelope, answer: bytes) -> Added | Refused:
    match answer[:1]:
        case b"i":
            return Refused(envelope.id, envelope.id, "id")
        case b"c":
            return Refused(envelope.id, envelope.id, "clash")
        case b"k":
            return Refused(envelope.id, answer[1:], "key")
        case _:
            return Added(envelope.id, answer[1:] or None)
