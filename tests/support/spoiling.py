"""Corrupts stored values: the means by which a test damages one job or session of a store, bypassing its broker."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

Stored = bytes | str | int | float | None
"""A stored value. A `str` may contain bytes that are not UTF-8, in the form of `surrogateescape`."""


class Value(NamedTuple):
    """One stored value: `place` names it for people ("jobs.extras"), and `address` is for the spoiler."""

    place: str
    address: tuple[object, ...]
    stored: Stored


class Spoiler(Protocol):
    """Reads and overwrites what a store holds, through the store's own interface but not through its broker. Every kind of store has
    one."""

    def values_of(self, owner: bytes) -> Sequence[Value]:
        """Return every stored value of the job or session with this id, including names and texts that only this owner uses."""
        ...

    def columns_of(self, job_id: bytes) -> Sequence[Value]:
        """Return the stored fields of the job alone, without its id and its arrival number. They are read at once."""
        ...

    def write(self, value: Value, stored: Stored) -> bool:
        """Replace the value with `stored`; None removes it. Return False if the store itself cannot hold that there."""
        ...

    def may_hide(self, value: Value) -> bool:
        """Return True if the owner may legitimately be gone or have another id after this value was changed."""
        ...

    def close(self) -> None: ...


class Spoilt(NamedTuple):
    """What was changed in one value."""

    owner: bytes
    value: Value
    how: str
    now: Stored

    def __str__(self) -> str:
        return f"{self.value.place} ({self.how}): {_brief(self.value.stored)} -> {_brief(self.now)}"


def spoil_one(spoiler: Spoiler, owner: bytes, chance: random.Random) -> Spoilt | None:
    """Corrupt one random value of the owner. Return None if the store accepted none of ten attempts."""
    for _ in range(10):
        value = chance.choice(spoiler.values_of(owner))
        how = chance.choice(list(_WAYS))
        now = _WAYS[how](value.stored, chance)
        if not _is_same(value.stored, now) and spoiler.write(value, now):
            return Spoilt(owner, value, how, now)
    return None


def _flipped(stored: Stored, chance: random.Random) -> Stored:
    if isinstance(stored, str):
        return _flipped(stored.encode(errors="surrogateescape"), chance)
    if isinstance(stored, bytes):
        at = chance.randrange(len(stored)) if stored else 0
        return stored[:at] + bytes([stored[at] ^ 1 << chance.randrange(8)]) + stored[at + 1 :] if stored else b"\0"
    if isinstance(stored, float):
        [turned] = struct.unpack("<d", struct.pack("<Q", struct.unpack("<Q", struct.pack("<d", stored))[0] ^ 1 << chance.randrange(64)))
        return float(turned)
    if isinstance(stored, int):
        return struct.unpack("<q", struct.pack("<Q", (stored & (1 << 64) - 1) ^ 1 << chance.randrange(64)))[0]  # type: ignore[no-any-return]
    return chance.randbytes(16)


def _same_kind(stored: Stored, like: Stored) -> Stored:
    return stored.decode(errors="surrogateescape") if isinstance(like, str) and isinstance(stored, bytes) else stored


def _of_another_type(stored: Stored, chance: random.Random) -> Stored:
    others: list[Stored] = ["text", "no UTF-8: \udcff\udcc1", "", b"\xc1\xff", b"", -1, 7, 1 << 62, 0.5, 1e300, math.inf, math.nan]
    return chance.choice([other for other in others if type(other) is not type(stored)])


def _of_another_length(stored: Stored, chance: random.Random) -> Stored:
    if isinstance(stored, str | bytes):
        raw = stored.encode(errors="surrogateescape") if isinstance(stored, str) else stored
        cut = chance.randrange(len(raw) + 1)
        return _same_kind(chance.choice([raw[:cut], raw[cut:], raw + b"\0", raw * 2, raw + bytes(100_000)]), stored)
    return chance.choice([-(1 << 63), (1 << 63) - 1, 0, -1])


_WAYS: Final[dict[str, Callable[[Stored, random.Random], Stored]]] = {
    "a bit": lambda stored, chance: _same_kind(_flipped(stored, chance), stored),
    "its type": _of_another_type,
    "its length": _of_another_length,
    "absent": lambda stored, chance: None,
}


def _is_same(before: Stored, now: Stored) -> bool:
    return type(before) is type(now) and before == now


def _brief(stored: Stored) -> str:
    told = repr(stored)
    return told if len(told) <= 60 else f"{told[:57]}..."
