"""Packs values and columns for the SQL functions."""

from __future__ import annotations

from typing import Final, TypeVar

from taskflow.model.envelope import ClaimId
from taskflow.model.progress import Progress
from taskflow.model.stored_values import packed

T = TypeVar("T")


def empty_if_unset(column: list[T | None]) -> list[T | None]:
    return [] if column.count(None) == len(column) else column


def collapse_equal(column: list[T]) -> list[T]:
    """Reduce a column to one element if all its elements are equal."""
    return column[:1] if column and column.count(column[0]) == len(column) else column


NO_CLAIM: Final = ClaimId(b"", -1, -1)


def is_possible_claim(claim: ClaimId, session: bytes) -> bool:
    """Return True if a store could have given the claim to the session."""
    return claim.session == session and 0 <= claim.request < 1 << 63 and 0 <= claim.number < 1 << 31


def pack_progress(progress: Progress | None) -> bytes | None:
    return None if progress is None else packed([progress.fraction, progress.note])


def utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def storable_text(name: str) -> str:
    """Escape the characters in a name that PostgreSQL cannot store as text: lone surrogates and NUL. A machine's name
    may consist of any bytes."""
    return name.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
