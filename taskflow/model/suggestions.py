"""Suggests the name that a misspelt one may stand for."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The one that is most like it, if any is."""
    from difflib import get_close_matches  # a command that has nothing to ask about starts without it

    return get_close_matches(word, list(known), n=1)
