"""The width and the colours of text on a terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Final

from taskflow.cli.base_parser import columns
from taskflow.model.printable import MAX_CHARACTERS
from taskflow.model.record import Status

RED: Final = 31
GREEN: Final = 32
YELLOW: Final = 33
CYAN: Final = 36
BOLD: Final = 1
DIM: Final = 2

OF_STATUS: Final = {Status.FAILED: RED, Status.SUCCEEDED: GREEN, Status.RUNNING: CYAN, Status.CANCELLED: YELLOW}


def has_colors() -> bool:
    """Return True if stdout is a terminal with colours, or FORCE_COLOR asks for them. NO_COLOR is stronger (https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def painted(text: str, color: int | None) -> str:
    return f"\033[{color}m{text}\033[0m" if color and text and has_colors() else text


def room() -> int:
    """Return how wide a line of stdout may be: the terminal's width, or nearly without a limit in a pipe."""
    return columns() if sys.stdout.isatty() else MAX_CHARACTERS


def width(text: str) -> int:
    """Return how many columns the text takes. Chinese, Japanese and Korean characters take two, accents that combine none."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(0 if category(c) in ("Mn", "Me", "Cf") else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, most: int) -> str:
    """Return the text with spaces up to this width. On a terminal, wider text is cut at its beginning: the end of a name says more."""
    return (cut_start(text, most) if sys.stdout.isatty() else text) + " " * (most - width(text))


def cut(text: str, most: int) -> str:
    """Return the text, cut at its end if it is wider than this."""
    return text if width(text) <= most else f"{_fitting(text, most - 3)}..."


def cut_start(text: str, most: int) -> str:
    return text if width(text) <= most else f"...{_fitting(text[::-1], most - 3)[::-1]}"


def wrapped(text: str, most: int) -> Iterator[str]:
    """Yield the text in lines of at most this width. A command in backticks stays on one line if it fits, so that it can be copied."""
    line = ""
    for word in re.findall(r"`[^`]*`\S*|\S+", text):
        if line and width(line) + 1 + width(word) > most:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while width(line) > most > 1:
            yield (head := _fitting(line, most))
            line = line[len(head) :]
    yield line


def hanging(label: str, text: str, most: int) -> Iterator[str]:
    """Yield the label and the text in lines of at most this width. The text of every line begins where that of the first one does."""
    for line in [text] if width(label + text) <= most else wrapped(text, max(most - len(label), 20)):
        yield label + line
        label = " " * len(label)


def _fitting(text: str, most: int) -> str:
    """Return the beginning of the text that fits."""
    end = min(len(text), max(0, most))
    while end and width(text[:end]) > most:
        end -= 1
    return text[:end]
