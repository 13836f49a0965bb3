"""Limits for stored values. The SQL files refer to them as P.LATEST and so on, and define domains that reject larger values."""

from __future__ import annotations

from typing import Final

from taskflow.model import failure_cause
from taskflow.model.failure_cause import POISON, UNKNOWN
from taskflow.model.job_schema import FOLLOWED_UP, MAX_PAYLOAD, TAGGED
from taskflow.model.stored_values import LATEST

MOST_BYTES: Final = 1 << 20
"""The maximum size of a small stored value in bytes. A longer one is not fetched."""

MOST_PAYLOAD_BYTES: Final = 1 << 26
"""The maximum size of a payload or a result in bytes. A longer one is not fetched."""

MOST_COUNTED: Final = (1 << 31) - 2
"""The maximum of a job's counters. A counter that has reached it stays there."""

MOST_JOINS: Final = 16_384
"""The maximum number of jobs that one job's end may release."""

NOTED_FOR: Final = 90_000_000
"""Microseconds for which a listener's note is valid. The listener renews it every minute."""

MOST_NOTIFIED_BYTES: Final = 5_000
"""The maximum size, in bytes, of a record that is sent with the notification that its job
has ended. A notification holds at most 8,000 bytes, and the record is sent as base64."""


def literals() -> dict[str, str]:
    """Return the SQL literal of each limit, by its name in the SQL files."""
    return {
        "P.LATEST": str(LATEST),
        "P.MOST_BYTES": str(MOST_BYTES),
        "P.MOST_PAYLOAD_BYTES": str(MOST_PAYLOAD_BYTES),
        "P.MAX_PAYLOAD": str(MAX_PAYLOAD),
        "P.MOST_TAGS": "2048",
        "P.MOST_DEPLOY": str(failure_cause.MOST_BYTES),
        "P.MOST_COUNTED": str(MOST_COUNTED),
        "P.MOST_REQUEST": str(2 * MAX_PAYLOAD + 16 * MOST_BYTES),  # bytes are sent in hexadecimal
        "P.MOST_JOINED_BYTES": str(16 * MOST_JOINS),
        "P.NOTED_FOR": str(NOTED_FOR),
        "P.MOST_NOTIFIED_BYTES": str(MOST_NOTIFIED_BYTES),
        "P.UNKNOWN": f"decode('{UNKNOWN.hex()}', 'hex')",
        "P.POISON": f"decode('{POISON.hex()}', 'hex')",
        "P.TAGGED": f"decode('{TAGGED.hex()}', 'hex')",
        "P.FOLLOWED_UP": f"decode('{FOLLOWED_UP.hex()}', 'hex')",
    }
