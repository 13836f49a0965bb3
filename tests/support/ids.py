"""Names of parameters that are the same in every process: workers that run tests side by side must collect the same ones."""

from __future__ import annotations

import re
from typing import Any


def stable_id(value: Any) -> str:
    """Return the value's repr without addresses in memory and, of a set, its items in one order."""
    if isinstance(value, set | frozenset) and value:
        return f"{type(value).__name__}({', '.join(sorted(map(stable_id, value)))})"
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))


def short_id(value: Any) -> str:
    return stable_id(value)[:40]
