"""Envelopes as columns of enqueue(), and its answers: see enqueue.sql."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.postgres.packing import one_of_all, unless_void
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, pack_extras
from taskflow.model.stored import LATEST


def envelope_columns(envelopes: Sequence[Envelope]) -> list[list[Any]]:
    """See enqueue.sql: ids, queues, jobs, priorities, afters, ats, expiries, keys, conflicts, payloads, extras, awaited, joined.

    A column in which nothing stands is empty: unnest() fills it with NULL, which costs less than to write that for each.
    """
    keys = unless_void([envelope.key for envelope in envelopes])
    return [
        [envelope.id for envelope in envelopes],
        [envelope.queue for envelope in envelopes],
        [envelope.job for envelope in envelopes],
        [envelope.priority for envelope in envelopes],
        unless_void([to_microseconds(envelope.after) if envelope.after else None for envelope in envelopes]),
        unless_void([None if envelope.at is None else min(envelope.at, LATEST) for envelope in envelopes]),
        unless_void([None if envelope.expires is None else to_microseconds(envelope.expires) for envelope in envelopes]),
        keys,
        [int(envelope.on_conflict) for envelope in envelopes] if keys else [],
        [envelope.payload for envelope in envelopes],
        unless_void([pack_extras(envelope) for envelope in envelopes]),
        unless_void([envelope.awaits or None for envelope in envelopes]),
        unless_void([b"".join(envelope.joins) or None if envelope.joins else None for envelope in envelopes]),
    ]


def columns_of_calls(envelopes: Sequence[Envelope]) -> list[list[Any]]:
    """The same for enqueue(), which needs one of what is alike in all: queue, job, priority, conflict."""
    columns = envelope_columns(envelopes)
    return [one_of_all(column) if place in _MOSTLY_ALIKE else column for place, column in enumerate(columns)]


_MOSTLY_ALIKE: Final = (1, 2, 3, 8)


def added_or_refused(envelope: Envelope, answer: bytes) -> Added | Refused:
    match answer[:1]:
        case b"i":
            return Refused(envelope.id, envelope.id, "id")
        case b"k":
            return Refused(envelope.id, answer[1:], "key")
        case _:
            return Added(envelope.id, answer[1:] or None)
