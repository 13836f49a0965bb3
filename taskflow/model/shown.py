"""Shows a user's value in a message."""

from __future__ import annotations

from typing import Final

MOST_SHOWN: Final = 200


def shown(value: object) -> str:
    """Return the value's repr, cut at 200 characters. If the repr fails (an int of 5,000 digits, a broken __repr__), return the type's
    name."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
