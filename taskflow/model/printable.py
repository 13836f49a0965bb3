"""Makes any text safe to show in a terminal or log. Also formats times, durations and JSON, suggests similar names, logs safely, and reads
whole numbers."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final

MAX_CHARACTERS: Final = 16_384
"""The maximum length of a log line or a printed error, in characters."""

MAX_SHOWN: Final = 200

INDENT: Final = "    "

MIN_BAR: Final = 10
"""The minimum width of a progress bar, in characters."""

_HARMLESS: Final = frozenset("\u00a0\u2007\u200c\u200d\u202f\u3000")
"""Spaces and joiners that ordinary text contains, but `str.isprintable` rejects."""


def one_line(text: object, most: int = MAX_CHARACTERS) -> str:
    """Return the text as one line of at most `most` characters. Control characters, text-direction marks and the like are escaped."""
    whole = str(text)
    if len(whole) <= most and whole.isprintable():
        return whole
    return _cut(_escaped(whole[: most + 1]), most, len(whole))


def indented(text: object, most: int | None = None) -> str:
    """Return the text with each line escaped and indented, so that no line can pass for a log line. If it's longer than `most` characters,
    its middle is left out."""
    whole = str(text)
    if most is not None and len(whole) > most:
        half = most // 2
        whole = f"{whole[:half]}\n[... {len(whole) - 2 * half:,} characters left out ...]\n{whole[-half:]}"
    # Not splitlines(), which also splits at characters that a terminal may not treat as line breaks.
    lines = whole.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return "\n".join(f"{INDENT}{_escaped(line.expandtabs())}".rstrip() for line in lines)


def message(text: object, most: int = MAX_CHARACTERS) -> str:
    """Return the text of an error with every line escaped, and every line but the first indented."""
    return indented(text, most).removeprefix(INDENT)


def shown(value: object) -> str:
    """Return the value's repr, truncated to 200 characters, or the name of its type if `repr` fails, as for an int with 5,000 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _HARMLESS else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, most: int, length: int) -> str:
    if length <= most and len(text) <= most:
        return text
    mark = f" [... of {length:,} characters]"
    return text[: most - len(mark)] + mark if most >= 1_000 else f"{text[: most - 3]}..."


def moment(at: datetime) -> str:
    """Return an aware datetime as text, followed by the local time if that differs."""
    text = f"{at:%a %Y-%m-%d} {_clock(at)} {at:%Z}"
    try:
        here = at.astimezone()
    except (OverflowError, ValueError, OSError):  # at the edge of datetime's range
        return text
    if here.utcoffset() == at.utcoffset():
        return text
    day = "" if here.date() == at.date() else f"{here:%a %Y-%m-%d} "
    return f"{text}, here {day}{_clock(here)}"


def _clock(at: datetime) -> str:
    time = at.time()
    return time.isoformat("minutes" if not (time.second or time.microsecond) else "seconds" if not time.microsecond else "milliseconds")


def span(seconds: float) -> str:
    """Return a duration in days, hours, minutes or seconds. A smaller unit follows only one digit: 3d4h, but 12d. Negative ones give 0s."""
    whole = round(min(max(0.0, seconds), 1e15))  # a store may contain infinity
    for unit, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit}{name}{f'{rest}{smaller_name}' if rest and whole < 10 * unit else ''}"
    return f"{whole}s"


def duration(seconds: float) -> str:
    """Return a readable duration, such as 12ms, 2.5s or 3m10s."""
    if abs(seconds) < 0.9995:
        return f"{1_000 * seconds:.0f}ms"
    return f"{seconds:.1f}s" if abs(seconds) < 10 else span(seconds) if seconds > 0 else f"-{span(-seconds)}"


def bar_of(share: float, width: int) -> str:
    """Return a bar of `width` characters in brackets, filled to a share from 0 to 1."""
    filled = int(share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}]"


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON in ASCII, without control characters, even DEL. Iterators become arrays; infinity and NaN become null."""
    import json  # imported here because most commands print no JSON

    return json.dumps(_plain(value), indent=indent, default=str, allow_nan=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case list() | tuple() | Iterator():
            return [*map(_plain, value)]
        case float():
            return value if value - value == 0 else None
        case datetime():
            return value.isoformat()
        case _ if hasattr(value, "__struct_fields__"):
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case _:
            return value


def nearest(word: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """Return the known name most similar to `word`, or None if none is similar. `similarity` is from 0 to 1."""
    from difflib import get_close_matches  # imported here because most commands have nothing to suggest

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=similarity)), None)


MAX_WHOLE: Final = 10**18


def whole(text: str) -> int | None:
    """Return the number that ASCII digits write, or None for any other text. A larger number than `MAX_WHOLE` gives `MAX_WHOLE`, because
    Python refuses to convert thousands of digits."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    return int(digits or 0) if len(digits) <= 18 else MAX_WHOLE


def log_safely(log: Callable[..., None], *args: object) -> None:
    """Call `log(*args)`, where `log` is a method such as `logger.info`. If it raises, print the traceback to stderr."""
    try:
        log(*args)
    except Exception:
        with contextlib.suppress(Exception):
            traceback.print_exc()
