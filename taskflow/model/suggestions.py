"""Suggests the name that a misspelt one may stand for."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return the most similar name, in a list; an empty list if none is similar."""
    from difflib import get_close_matches  # commands that suggest nothing start without this import

    return get_close_matches(word, list(known), n=1)
