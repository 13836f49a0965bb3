"""The progress that a run reports."""

from __future__ import annotations

from typing import Final, Self

import msgspec

from taskflow.model.stored_values import number, text, unpacked

MAX_NOTE: Final = 4_096
"""The maximum length of a note in characters. Longer notes are truncated."""


class Progress(msgspec.Struct, frozen=True):
    """The progress that a run reports: a fraction from 0 to 1, and a note."""

    fraction: float
    note: str = ""

    @classmethod
    def checked(cls, fraction: float, note: str) -> Self:
        """Create a Progress from a job's values, truncating a long note. Raises TypeError or ValueError for values that do not fit."""
        if not isinstance(note, str):
            raise TypeError(f"a progress note must be text, got {type(note).__name__}: pass str(...) of it")
        try:
            is_fraction = 0 <= fraction <= 1
        except TypeError:
            raise TypeError(f"progress must be a number between 0 and 1, got {type(fraction).__name__}") from None
        if not is_fraction:
            raise ValueError(f"progress must be between 0 and 1, got {fraction!r}")
        return cls(float(fraction), str.__getitem__(note, slice(MAX_NOTE)))  # converts a str subclass to plain str


def unpack_progress(packed: bytes | None) -> Progress | None:
    """Decode progress that is stored as a msgpack array of its two fields. Raises ValueError or TypeError for anything else."""
    if packed is None:
        return None
    stored = unpacked(packed)
    if not isinstance(stored, list) or len(stored) != 2:
        raise TypeError("expected fraction and note")
    return Progress(number(stored[0], 0.0, 1.0), text(stored[1]))
