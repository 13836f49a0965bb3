"""The cause of a failed job, as stores keep it: the fingerprint of its failure, and the deploy on which it failed."""

from __future__ import annotations

from typing import Any, Final

FINGERPRINT_BYTES: Final = 8

UNKNOWN: Final = bytes(FINGERPRINT_BYTES)
"""The fingerprint of a failed job that has no sound cause, because another program has changed its stored fields."""

POISON: Final = bytes.fromhex("e33c699416c01f47")
"""The fingerprint of poison whose last worker died of an unknown cause, which `fingerprint.poison_fingerprint` computes."""

LONGEST_DEPLOY: Final = 100
MOST_BYTES: Final = FINGERPRINT_BYTES + 4 * LONGEST_DEPLOY


def pack_cause(fingerprint: bytes, deploy: str) -> bytes:
    """Return the fingerprint followed by the deploy. All causes with one fingerprint are next to each other in an index."""
    return fingerprint + deploy[:LONGEST_DEPLOY].encode(errors="replace")


def fingerprint_in(cause: Any) -> bytes:
    """Return the fingerprint in a stored cause, which may be any value."""
    return cause[:FINGERPRINT_BYTES] if isinstance(cause, bytes) and len(cause) >= FINGERPRINT_BYTES else UNKNOWN


def deploy_in(cause: Any) -> str:
    """Return the deploy in a stored cause. It is empty if none was set, or if it is not known."""
    return cause[FINGERPRINT_BYTES:].decode(errors="replace") if isinstance(cause, bytes) else ""
