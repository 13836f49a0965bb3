"""A clock that several processes share. It moves only when one of them advances it, without real time passing."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

from taskflow.model.clock import ManualClock, to_microseconds

_BOTH: Final = struct.Struct("qq")


class FileClock:
    """Wall time and steady time, in microseconds, in a mapped file of sixteen bytes."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            begin = ManualClock()
            path.write_bytes(_BOTH.pack(begin.wall(), begin.steady()))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _BOTH.size)

    def wall(self) -> int:
        wall: int = _BOTH.unpack_from(self._shared)[0]
        return wall

    def steady(self) -> int:
        steady: int = _BOTH.unpack_from(self._shared)[1]
        return steady

    def boot_id(self) -> str:
        return "shared"

    def advance(self, seconds: float) -> None:
        moved = to_microseconds(seconds)
        _BOTH.pack_into(self._shared, 0, self.wall() + moved, self.steady() + moved)

    def close(self) -> None:
        self._shared.close()
