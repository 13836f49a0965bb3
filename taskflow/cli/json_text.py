"""Writes JSON that is safe to show on a terminal."""

from __future__ import annotations

import json
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON in ASCII, with all control characters escaped, including DEL, which `json` leaves as it is."""
    return json.dumps(value, indent=indent, default=str).replace("\x7f", "\\u007f")
