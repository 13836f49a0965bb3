"""Writes JSON that is safe to show on a terminal."""

from __future__ import annotations

import json
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON in ASCII without control characters: `json` escapes all of them except DEL."""
    return json.dumps(value, indent=indent, default=str).replace("\x7f", "\\u007f")
