"""What a job is kept as: the places of its fields, which the scripts and Python share.

The order follows a job's life, since the array ends after its last field: one that waits for its first run has eight.
Never renumber: stores hold these.
"""

from __future__ import annotations

from typing import Final

FIELDS: Final = (
    "status",  # a code of record.CODES, or literals.GONE
    "queue",  # numbers that stand for texts
    "name",
    "priority",
    "seq",  # arrival
    "created",  # microseconds since 1970, as all times
    "due",  # absent: when it was created
    "payload",
    "epoch",
    "claim",  # session (16 bytes), request (6), number (2)
    "claimed",
    "claimed_steady",
    "worker",
    "started",
    "settled",  # the fence of the settlement that took effect last: epoch (4 bytes), claim
    "result",
    "ended",
    "keep_until",
    "extras",
    "expires",
    "key",
    "awaits",
    "joins",  # ids, one after the other
    "behind",  # the id of the running holder of its key
    "failures",
    "crashes",
    "snoozes",
    "hand_backs",
    "parked",
    "errors",
    "progress",
    "cancel_requested",
    "reason",
    "waiting_for",
    "poison",
)

SESSION_BYTES: Final = 16
ID_BYTES: Final = 16
TAIL_BYTES: Final = 8
