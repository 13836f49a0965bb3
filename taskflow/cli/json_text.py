"""Writes JSON that is safe to show on a terminal."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any


def print_json(value: Any) -> None:
    print(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON in ASCII, with all control characters escaped, including DEL, which `json` leaves as it is.

    Instants become text in ISO 8601. JSON has no infinity and no NaN, which a store may contain: they become null.
    """
    try:
        text = json.dumps(value, indent=indent, default=_as_text, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, default=_as_text, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
