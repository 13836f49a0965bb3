"""Defines the stored form of a job: its fields, in the order that the scripts and Python share.

The order follows a job's life, because the array ends after the last field that is set: a job that is waiting for its first run has only
eight. Never renumber the fields, because stores contain these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from taskflow.model.job_schema import AS_SENT as STORED_AS_SENT, FIELDS as SCHEMA

LAYOUT: Final = 1
"""The version of the fields and keys. A store with another version is refused.
Increase it with every change that an older taskflow would misread."""

FIELDS: Final = tuple(field.name for field in SCHEMA if field.name != "id")
"""The fields, in the order of the array. `due_at` is absent if it equals `created_at`. `claim` is the session (16 bytes), request (6) and
number (2). `settled` is the epoch (4 bytes) and the claim. `spoilt` is msgpack: the field's number, the problem and the first bytes."""

AS_SENT: Final = tuple(field for field in FIELDS if field in STORED_AS_SENT and field != "payload")
"""The fields at the end of a job's item for the script `add`."""

_WAITING: Final = {
    "status": 1,
    "priority": 1,  # signed
    "queue": 4,
    "name": 4,
    "due": 8,  # the creation time, unless a time was planned
    "seq": 6,
    "created": 8,
}
_RUNNING: Final = {"status": 1, "epoch": 4, "session": 16, "request": 6, "number": 2, "claimed": 8, "claimed_steady": 8}
"""The fixed layout of plain jobs that are waiting for their first run, are in that run, or have succeeded in it. They
have no other fields. Scripts cut and join such a record as a string, instead of unpacking, changing and packing an array.

READY, SCHEDULED   the fields of _WAITING, extras (after their length in 2 bytes), payload (after its length in 4)
RUNNING            the fields of _RUNNING, worker (after its length in 2 bytes), and everything from the waiting record
SUCCEEDED          the same without the payload; then ended (8), ran_for (8), keep_for (8), result (after its length in 4 bytes);
                   the fence of its settlement is that of its claim

Numbers are big-endian. All other jobs are msgpack arrays of `FIELDS`, whose first byte is larger than any status.
"""


def _spans() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the positions of the first and last byte of each field, counted from 1, and of the first byte after
    the fields of fixed width."""
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
"""The first bytes of a reference. A large payload is stored separately under b:ID, and a large result under o:ID. The job holds a
reference, which is this mark and the length in 4 bytes.

So no script reads the value itself. Lua would read every byte of each
string it creates, and make about six copies by the time the job has ended.

An older version mistakes a reference for a payload from a newer version, and leaves the job to other workers: see `codec.payload`.
"""

SESSION_BYTES: Final = 16
TAIL_BYTES: Final = 8
