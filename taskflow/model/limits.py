"""Limits as stores see them: the gates through which a job passes before it is READY."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from taskflow.model.stored_values import LATEST

GATE_ID_BYTES: Final = 16
SLOTS: Final = b"slots"
RATE: Final = b"rate"
"""The kinds of gates."""

TENANT: Final = b"tenant"
"""The kind of a tenant's digest. The jobs of different tenants take turns."""

MAX_GATES: Final = 8
"""The maximum number of limits of one job."""

MAX_MOST: Final = 1_000_000_000

PAYMENT_TTL: Final = 1_000_000
"""How many microseconds after its due time a job that has paid for a rate may still start. A job that is later has to pay again; otherwise
all jobs that waited for a worker would start at once."""


class Gate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One limit, for one value of its key. All jobs whose gates have the same `id` share it.

    `id`     16 bytes, made by `gate_id`
    `limit`  the limit's name: the job's name, or the name of the shared `Limit`
    `key`    the value of the key, for display; "" if the limit has no key
    `most`   how many jobs may be READY or RUNNING at once, or start within `per`, as the sender declares it
    `per`    the period of a rate, in microseconds; 0 if the gate limits how many run at once
    `burst`  for a rate, how many jobs may start at once after a quiet period
    """

    id: bytes
    limit: str
    key: str
    most: int
    per: int = 0
    burst: int = 1


def gate_id(limit: str, key: str, *, kind: bytes = SLOTS) -> bytes:
    """Return the id of a gate: 16 bytes of the SHA-256 of its kind, name and key."""
    return hashlib.sha256(b"\0".join((kind, limit.encode(), key.encode()))).digest()[:GATE_ID_BYTES]


def lacking(limits: Sequence[Gate], declared: Sequence[Gate]) -> tuple[Gate, ...]:
    """Return the declared gates whose kind and name don't occur in `limits`."""
    names = {(gate.limit, gate.per > 0) for gate in limits}
    return tuple([gate for gate in declared if (gate.limit, gate.per > 0) not in names])


def interval(gate: Gate) -> int:
    """Return the interval between starts at this rate, in microseconds, rounded up so that no period has too many starts."""
    return -(-gate.per // gate.most)


def earliest(tat: int | None, closed_until: int | None, gate: Gate, now: int) -> int:
    """Return when a rate lets the next job start, by the generic cell rate algorithm. `tat` is the theoretical arrival time."""
    return max(now, closed_until or 0, (tat or 0) - (gate.burst - 1) * interval(gate))


def paid(tat: int | None, gate: Gate, start: int) -> int:
    """Return the theoretical arrival time after a job that starts at `start`, now or later."""
    return min(LATEST, max(tat or 0, start) + interval(gate))
