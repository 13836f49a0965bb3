"""Packs and unpacks msgpack for the scripts, and the claims, ids and progress that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from taskflow.broker.redis.fields import SESSION_BYTES
from taskflow.model.envelope import ClaimId
from taskflow.model.ids import ID_BYTES
from taskflow.model.progress import Progress

Item = tuple[object, ...]

MOST_REQUESTS: Final = 1 << 48
MOST_NUMBERS: Final = 1 << 16


def pack(arguments: Sequence[object]) -> bytes:
    """Pack arguments, with bytes as strings, because Lua has no other type for them. Lone
    surrogates are allowed, because text such as an exception's message may contain them."""
    packed = msgpack.packb(arguments, use_bin_type=False, unicode_errors="surrogatepass")
    assert packed is not None
    return bytes(packed)


def unpack(packed: bytes) -> Any:
    """Unpack a value. Strings are returned as bytes."""
    return msgpack.unpackb(packed, raw=True, strict_map_key=False)


def pack_tail(claim: ClaimId) -> bytes:
    """Pack a claim without its session: 8 bytes that sort by request and number."""
    return claim.request.to_bytes(6, "big") + claim.number.to_bytes(2, "big")


def pack_claim(claim: ClaimId) -> bytes:
    return claim.session + pack_tail(claim)


def unpack_claim(packed: bytes) -> ClaimId:
    return claim_of(packed[:SESSION_BYTES], packed[SESSION_BYTES:])


def claim_of(session: bytes, tail: bytes) -> ClaimId:
    return ClaimId(session, int.from_bytes(tail[:6], "big"), int.from_bytes(tail[6:], "big"))


def can_be(claim: ClaimId, session: bytes) -> bool:
    """Return True if a store could have given the claim to the session."""
    return claim.session == session and 0 <= claim.request < MOST_REQUESTS and 0 <= claim.number < MOST_NUMBERS


def pack_progress(progress: Progress | None) -> bytes | bool:
    return False if progress is None else pack([progress.fraction, progress.note])


def ids_in(packed: bytes) -> list[bytes]:
    return [packed[first : first + ID_BYTES] for first in range(0, len(packed), ID_BYTES)]
