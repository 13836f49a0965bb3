"""Suggests the known name that a user probably meant by an unknown one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """Return the known name most similar to `word`, or None if none is similar. `similarity` is from 0 to 1."""
    from difflib import get_close_matches  # imported here because most commands have nothing to suggest

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=similarity)), None)
