"""Job ids, which are UUIDv7. The client makes them, so sending a call again adds no second job."""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import Final

from taskflow.model.clock import Seams
from taskflow.model.errors import InvalidJobId
from taskflow.model.printable import shown

ID_BYTES: Final = 16

MAX_KEY_BYTES: Final = 200
EXAMPLE: Final = "01a20e69-e073-7000-9acc-49abe1cd4c9a"


class IdFactory:
    """Makes 16-byte ids, UUIDv7: 48 bits of milliseconds, 62 random bits, and the shard in place of the RFC's `rand_a`."""

    def __init__(self, seams: Seams | None = None) -> None:
        seams = seams or Seams()
        self._wall = seams.clock.wall
        self._random_bytes = seams.chance.randbytes

    def __call__(self, shard: int = 0) -> bytes:
        chance = _from_bytes(self._random_bytes(8)) & 0x3FFF_FFFF_FFFF_FFFF
        return _pack(self._wall() // 1_000 << 16 | 0x7000 | shard, chance | 0x8000_0000_0000_0000)


_from_bytes: Final = int.from_bytes
_pack: Final = struct.Struct(">QQ").pack


def id_text(job_id: bytes) -> str:
    """Return the canonical text form of an id. A damaged id, which is not 16 bytes long, is returned as plain hexadecimal."""
    return str(uuid.UUID(bytes=job_id)) if len(job_id) == 16 else job_id.hex()


def parse_id(text: str) -> bytes:
    """Parse the text form of an id and return its 16 bytes. Raises InvalidJobId for anything else."""
    try:
        return uuid.UUID(text).bytes
    except (ValueError, AttributeError, TypeError):
        raise InvalidJobId(f"{shown(text)} is not a job id: expected text such as {EXAMPLE!r}, the form of `handle.id`") from None


def key_digest(queue: str, job: str, key: str) -> bytes:
    """Return the stored form of a key: 16 bytes of the SHA-256 of queue ("" for any), job and key. Raises ValueError for an invalid key."""
    return hashlib.sha256(b"\0".join((queue.encode(), job.encode(), check_key(key).encode()))).digest()[:16]


def check_key(key: str, text: str | None = None, option: str = "key") -> str:
    """Return the key. Raises ValueError if it's empty, too long, or not valid text. The message names `option`, and shows `text` if given,
    else the key."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{option}= has a lone surrogate, which is not valid text: {(key if text is None else text)!r}") from None
    if not 0 < size <= MAX_KEY_BYTES:
        raise ValueError(f"{option}= has {size} bytes of UTF-8, expected 1 to {MAX_KEY_BYTES}: {(key if text is None else text)[:40]!r}")
    return key
