"""Decodes leases from the reply of the script `claim`. Plain jobs arrive in the fixed layout of `fields`, all others as msgpack arrays."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker.redis.fields import FIELDS, TAIL_BYTES
from taskflow.broker.redis.jobs import Names, head_of, lease_of
from taskflow.broker.redis.packing import unpack
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.record import CODES, Status


class Claimed(NamedTuple):
    leases: list[Lease]
    is_armed: bool
    """True if the server will wake the session when new jobs arrive, because it found fewer jobs than the session wanted."""


def read_claim(reply: Sequence[bytes]) -> Claimed:
    """Decode the reply of the script `claim`."""
    wall, names, is_armed = head_of(reply[0])
    leases = list[Lease]()
    for i in range(1, len(reply), 2):
        stored = reply[i + 1]
        if stored[0] == _RUNNING:
            try:
                leases.append(_plain_lease(reply[i], stored, names))
            except Exception:  # includes RecursionError, OverflowError, KeyError and msgpack's own errors
                leases.append(lease_of(reply[i], _fields_of(stored), names, wall))
        else:
            leases.append(lease_of(reply[i], unpack(stored), names, wall))
    return Claimed(leases, is_armed)


_RUNNING: Final = CODES[Status.RUNNING]
_LEASED: Final = struct.Struct(">xI16sQ16xH")
_WAITING: Final = struct.Struct(">xbII14xQH")
"""The fixed layout of a lease, in two parts: epoch, session, request and number, length of the worker's name; priority, queue, name,
created, length of extras."""


def _plain_lease(job_id: bytes, stored: bytes, names: Names) -> Lease:
    epoch, session, tail, worker_bytes = _LEASED.unpack_from(stored)
    at = _LEASED.size + worker_bytes
    priority, queue, name, created, extras_bytes = _WAITING.unpack_from(stored, at)
    at += _WAITING.size
    extras = unpack_extras(stored[at : at + extras_bytes]) if extras_bytes else _NO_EXTRAS
    payload = stored[at + extras_bytes + 4 :]
    return Lease(
        envelope=Envelope(id=job_id, job=names[name], payload=payload, queue=names[queue], priority=priority, **extras),
        epoch=epoch,
        claim=ClaimId(session, tail >> 16, tail & 0xFFFF),
        created_at=created,
    )


_NO_EXTRAS: Final[dict[str, Any]] = {}


def _fields_of(stored: bytes) -> list[Any]:
    """Convert a lease in the fixed layout to the equivalent array of fields."""
    epoch, session, tail, worker_bytes = _LEASED.unpack_from(stored)
    at = _LEASED.size + worker_bytes
    priority, queue, name, created, extras_bytes = _WAITING.unpack_from(stored, at)
    at += _WAITING.size
    job = dict.fromkeys(FIELDS, False) | {
        "status": _RUNNING,
        "queue": queue,
        "name": name,
        "priority": priority,
        "created_at": created,
        "payload": stored[at + extras_bytes + 4 :],
        "epoch": epoch,
        "claim": session + tail.to_bytes(TAIL_BYTES),
        "extras": stored[at : at + extras_bytes] or False,
    }
    return list(job.values())
