"""Suggests the intended name for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return a list with the most similar name, or an empty list if none is similar."""
    from difflib import get_close_matches  # imported here because most commands suggest nothing

    return get_close_matches(word, list(known), n=1)
