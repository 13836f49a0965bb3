"""Names of parameters that are the same in every process, because parallel test workers must collect the same names."""

from __future__ import annotations

import re
from typing import Any


def stable_id(value: Any) -> str:
    """Return the value's repr without memory addresses, and with a set's items in a fixed order."""
    if isinstance(value, set | frozenset) and value:
        return f"{type(value).__name__}({', '.join(sorted(map(stable_id, value)))})"
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))


def short_id(value: Any) -> str:
    return stable_id(value)[:40]
