"""Suggests the known name that a user probably meant by an unknown one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return a list with the known name most similar to `word`, or an empty list if none is similar."""
    from difflib import get_close_matches  # imported here because most commands have nothing to suggest

    return get_close_matches(word, list(known), n=1)
