"""Limits for stored values. The SQL files refer to them as P.LATEST and so on. Some are in constraints."""

from __future__ import annotations

from typing import Final

from taskflow.broker.engine.job import State, encode, text_bytes
from taskflow.broker.engine.records import Flag
from taskflow.model import wording
from taskflow.model.ids import ID_BYTES
from taskflow.model.job_schema import MAX_PAYLOAD
from taskflow.model.stored_values import LATEST

MOST_BYTES: Final = 1 << 20
"""The maximum size of a small stored value in bytes. A longer one is not fetched."""

MOST_PAYLOAD_BYTES: Final = 1 << 26
"""The maximum size of a payload or a result in bytes. A longer one is not fetched."""

NOTED_FOR: Final = 90_000_000
"""Microseconds for which a listener's note is valid. The listener renews it every minute."""

MOST_NOTIFIED_BYTES: Final = 5_300
"""The maximum size, in bytes, of a record that is sent with the notification that its job
has ended. A notification holds at most 8,000 bytes, and the record is sent as base64."""


def literals() -> dict[str, str]:
    """Return the SQL literal of each limit, by its name in the SQL files."""
    return {
        "P.LATEST": str(LATEST),
        "P.MOST_BYTES": str(MOST_BYTES),
        "P.MOST_PAYLOAD_BYTES": str(MOST_PAYLOAD_BYTES),
        "P.MAX_PAYLOAD": str(MAX_PAYLOAD),
        "P.MOST_REQUEST": str(2 * MAX_PAYLOAD + 16 * MOST_BYTES),  # bytes are sent in hexadecimal
        "P.NOTED_FOR": str(NOTED_FOR),
        "P.MOST_NOTIFIED_BYTES": str(MOST_NOTIFIED_BYTES),
        "P.KEYED": str(Flag.KEYED),
        "P.AWAITED": str(Flag.AWAITED),
        "P.TAGGED": str(Flag.TAGGED),
        "P.CONSEQUENTIAL": str(Flag.KEYED | Flag.AWAITED | Flag.STATED),
        "P.STATE_ARRIVING": _state(State(waiting=_ARRIVES)),
        "P.STATE_REPLACING": _state(State(waiting=_ARRIVES, replaces=True)),
        "P.STATE_REPLACED": _state(State(waiting=_ARRIVES, replaced=bytes(ID_BYTES)), cut=ID_BYTES),
    }


_ARRIVES: Final = text_bytes(wording.ARRIVES)


def _state(state: State, *, cut: int = 0) -> str:
    """Return the packed state of an arrival, without its last `cut` bytes."""
    packed = encode(state)
    return f"decode('{packed[: len(packed) - cut].hex()}', 'hex')"
