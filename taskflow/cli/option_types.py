"""Parses the values of command-line options."""

from __future__ import annotations

import argparse
import contextlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

# The shortest ttl in seconds. A heartbeat is sent every quarter of it.
SHORTEST_TTL: Final = 1.0

SHORTEST_INTERVAL: Final = 0.1
MOST_TIMES: Final = 10_000
MOST_PROCESSES: Final = 1_000
LONGEST: Final = 36_525 * 86_400.0
"""A hundred years, in seconds. Stores cannot compute with much longer times."""


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def processes(text: str) -> int:
    if (number := positive(text)) > MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_PROCESSES}, which would fill the machine")
    return number


def count(text: str) -> int:
    if (number := positive(text)) > MOST_TIMES:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_TIMES}")
    return number


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def stages(text: str) -> tuple[int | None, ...]:
    """Parse the sizes of stages; None stands for all that are left."""
    return tuple(None if part == "all" else positive(part) for part in text.lower().split(","))


def fingerprint(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{16}", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is not a group, such as 71efb6587dea8408: `taskflow failures` lists them")
    return text.lower()


def size(text: str) -> int:
    """Parse a number of bytes; K, M and G are powers of 1,024."""
    written = re.fullmatch(r"([1-9][0-9]{0,18})([KMG]?)", text, re.IGNORECASE | re.ASCII)
    if written is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 536870912, 512M or 1G")
    return int(written[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[written[2].upper()]


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def seconds(text: str) -> float:
    """Parse a number of seconds, or numbers with units, such as 90m or 1h30m."""
    parts = re.findall(r"([0-9.]+)(ms|[smhdw])", text, re.ASCII)
    has_units = bool(parts) and "".join(map("".join, parts)) == text
    with contextlib.suppress(ValueError):
        value = sum(float(number) * _UNITS[unit] for number, unit in parts) if has_units else float(text)
        if LONGEST < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is longer than a hundred years")
        if 0 <= value <= LONGEST:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more, or a duration such as 90m, 12h or 7d")


def interval(text: str) -> float:
    value = seconds(text)
    if value < SHORTEST_INTERVAL:
        raise argparse.ArgumentTypeError(f"{text!r} is too short: use {SHORTEST_INTERVAL:g} or more")
    return value


def time(text: str) -> datetime:
    from datetime import datetime

    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T09:00, or 2026-01-31T09:00+01:00") from None
    if not 1970 <= value.year < 3000:
        raise argparse.ArgumentTypeError(f"{text!r} is not between the years 1970 and 2999")
    return value


def ttl(text: str) -> float:
    value = seconds(text)
    if value < SHORTEST_TTL:
        raise argparse.ArgumentTypeError(f"{text!r} is too short: a busy worker would be declared dead; use {SHORTEST_TTL:g} or more")
    return value
