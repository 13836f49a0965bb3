"""What a job is kept as: the places of its fields, which the scripts and Python share.

The order follows a job's life, since the array ends after its last field: one that waits for its first run has eight.
Never renumber: stores hold these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LAYOUT: Final = 3
"""Of all that is below, and of the keys. Stores hold it: one that has another is refused. Any change that an older version could not read,
or would read wrongly, raises it."""

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
    "spoilt",  # of a job that the store has set aside: msgpack of the field that could not be read, the problem, and first bytes
)

_WAITING: Final = {
    "status": 1,
    "priority": 1,  # signed
    "queue": 4,
    "name": 4,
    "due": 8,  # when it was created, for what was not planned
    "seq": 6,
    "created": 8,
}
_RUNNING: Final = {"status": 1, "epoch": 4, "session": 16, "request": 6, "number": 2, "claimed": 8, "claimed_steady": 8}
"""The fixed layout, for what most jobs are all their life: one that waits for its first run, is in it, or has succeeded in it, and has
nothing to it but what is here. It is cut and put together again where an array would be unpacked, changed and packed.

READY, SCHEDULED   the fields of _WAITING, extras (after their length in 2 bytes), payload (after its length in 4)
RUNNING            the fields of _RUNNING, worker (after its length in 2 bytes), and all as it was while it waited
SUCCEEDED          the same without the payload; then ended (8), ran_for (8), keep_for (8), result (after its length in 4 bytes);
                   the fence of its settlement is that of its claim

Numbers are big-endian. All other jobs are msgpack arrays of `FIELDS`, which no byte as small as a status begins.
"""


def _spans() -> Iterator[tuple[str, tuple[int, ...]]]:
    """First and last byte, counted from 1, of a field or of several in a row; the first byte behind the fixed ones."""
    for widths in (_WAITING, _RUNNING):
        end = 0
        for name, width in widths.items():
            yield name, (end + 1, end + width)
            end += width
        yield "waiting" if widths is _WAITING else "running", (end + 1,)


_EACH: Final = dict(_spans())

SPANS: Final = _EACH | {
    "place": (_EACH["due"][0], _EACH["seq"][1]),
    "claim": (_EACH["session"][0], _EACH["number"][1]),
    "fence": (_EACH["epoch"][0], _EACH["number"][1]),
}

MARK: Final = b"\xff@"
"""A large payload is kept apart, under b:ID, and its place in the job has a reference: this, and how many bytes it has (4). So no script
reads it: Lua looks at every byte of each string that it makes, and would make some six of it until the job has ended.

To a version that knows nothing of it a reference is a payload of a newer one, so that it leaves the job to others: `codec.payload`.
"""

SESSION_BYTES: Final = 16
ID_BYTES: Final = 16
TAIL_BYTES: Final = 8
