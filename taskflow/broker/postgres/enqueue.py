"""Packs envelopes into arguments for enqueue_all(): see enqueue.sql."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

from taskflow.broker.postgres.columns import SENT
from taskflow.broker.postgres.packing import collapse_equal, empty_if_unset
from taskflow.model.clock import to_microseconds
from taskflow.model.envelope import Envelope, pack_extras
from taskflow.model.job_schema import AS_SENT
from taskflow.model.stored_values import LATEST


def envelope_columns(envelopes: Sequence[Envelope]) -> list[list[Any]]:
    """Return the values for the columns in `columns.SENT`.

    A column without values is an empty array: unnest() pads it with NULLs, which costs less than sending a NULL for each row.
    """
    columns: dict[str, list[Any]] = {
        "queue": [envelope.queue for envelope in envelopes],
        "job": [envelope.job for envelope in envelopes],
        "after": empty_if_unset([to_microseconds(envelope.after) if envelope.after else None for envelope in envelopes]),
        "at": empty_if_unset([None if envelope.at is None else min(envelope.at, LATEST) for envelope in envelopes]),
        "expiry": empty_if_unset([None if envelope.expires is None else to_microseconds(envelope.expires) for envelope in envelopes]),
        "extras": empty_if_unset([pack_extras(envelope) for envelope in envelopes]),
        "joins": empty_if_unset([b"".join(envelope.joins) or None if envelope.joins else None for envelope in envelopes]),
        "id": [envelope.id for envelope in envelopes],
        "priority": [envelope.priority for envelope in envelopes],
        "payload": [envelope.payload for envelope in envelopes],
        "awaits": empty_if_unset([envelope.awaits or None for envelope in envelopes]),
    }
    columns |= {name: empty_if_unset(list(map(get, envelopes))) for name, get in _AS_SENT.items() if name not in columns}
    columns["conflict"] = [int(envelope.on_conflict) for envelope in envelopes] if columns["key"] else []
    return [columns[name] for name in SENT]


_AS_SENT: Final = {name: attrgetter(name) for name in AS_SENT}


def columns_of_calls(envelopes: Sequence[Envelope]) -> list[list[Any]]:
    """Return the arguments of enqueue_all(). Some columns are reduced to one element if all their values are equal."""
    columns = zip(SENT, envelope_columns(envelopes), strict=True)
    return [collapse_equal(column) if name in _MOSTLY_ALIKE else column for name, column in columns]


_MOSTLY_ALIKE: Final = frozenset({"queue", "job", "priority", "conflict"})
