"""Renders the output of commands: tables, fields, JSON, times and a progress bar. Colours and widths apply only on a terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from taskflow.cli.base_parser import columns
from taskflow.cli.exit_codes import Exit
from taskflow.model.printable import INDENT, MAX_CHARACTERS, MIN_BAR, bar_of, json_text, one_line, span

BOLD, DIM, RED, GREEN, YELLOW, CYAN = 1, 2, 31, 32, 33, 36  # ANSI escape codes
OF_STATUS: Final = {"failed": RED, "succeeded": GREEN, "running": CYAN, "cancelled": YELLOW}
ALWAYS_SHOWN: Final = 9
MIN_NAME: Final = 12  # the minimum width of a column of names
BESIDE: Final = 40  # columns reserved for the numbers beside a progress bar


def painted(text: str, color: int | None) -> str:
    """Colour the text if stdout is a terminal with colours, or FORCE_COLOR asks for it. NO_COLOR takes precedence
    (https://no-color.org)."""
    if not color or not text or os.environ.get("NO_COLOR"):
        return text
    has_colors = os.environ.get("FORCE_COLOR") or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")
    return f"\033[{color}m{text}\033[0m" if has_colors else text


def room() -> int:
    """Return the maximum width of a line of stdout: the terminal's width, or practically unlimited in a pipe."""
    return columns() if sys.stdout.isatty() else MAX_CHARACTERS


def width(text: str) -> int:
    """Return how many columns the text occupies: two for each Chinese, Japanese or Korean character, none for combining accents."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(0 if category(c) in ("Mn", "Me", "Cf") else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, most: int) -> str:
    """Pad the text to `most` columns. On a terminal, wider text is cut at its beginning, because the end of a name says more."""
    if sys.stdout.isatty() and width(text) > most:
        text = f"...{_fitting(text[::-1], most - 3)[::-1]}"
    return text + " " * (most - width(text))


def cut(text: str, most: int) -> str:
    """Return the text, cut at its end if it is wider than `most` columns."""
    return text if width(text) <= most else f"{_fitting(text, most - 3)}..."


def _fitting(text: str, most: int) -> str:
    """Return the longest beginning of the text that fits in `most` columns."""
    end = min(len(text), max(0, most))
    while end and width(text[:end]) > most:
        end -= 1
    return text[:end]


def wrapped(text: str, most: int) -> Iterator[str]:
    """Yield the text in lines of at most `most` columns. A command in backticks stays on one line if it fits, so that it can be copied."""
    line = ""
    for word in re.findall(r"(?:`[^`]*`\S*|\S+)\s*", text):
        if line and width(line) + width(word.rstrip()) > most:
            yield line.rstrip()
            line = ""
        line += word
        while width(line.rstrip()) > most > 1:
            yield (head := _fitting(line, most))
            line = line[len(head) :]
    yield line.rstrip()


def hanging(label: str, text: str, most: int) -> Iterator[str]:
    """Yield the label and the text in lines of at most `most` columns. Continuation lines are aligned with the text of the first one."""
    for line in [text] if width(label + text) <= most else wrapped(text, max(most - len(label), 20)):
        yield label + line
        label = " " * len(label)


def show(arguments: argparse.Namespace, document: object, lines: Iterable[str]) -> int:
    """Print the document with `--json`, otherwise the lines. If both are iterators, only one of them does any work."""
    if arguments.json:
        print_json(document)
    else:
        for line in lines:
            print(line)
    return Exit.OK


def warn(text: str) -> None:
    print(f"taskflow: {text}", file=sys.stderr)


def print_now(line: str) -> None:
    """Print a line to stdout at once. If the reader of stdout is gone, as with `| head`, the command continues."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


def confirmed(question: str, arguments: argparse.Namespace) -> bool:
    """Ask the user on the terminal, and return True if they confirm. With `--yes`, or without a terminal, return True without asking."""
    if arguments.yes or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    warn("nothing was changed")
    return False


def print_json(value: Any) -> None:
    print(json_text(value, indent=2))


def only(value: object, *names: str) -> dict[str, Any]:
    """Return a dict of the value's attributes with these names."""
    return {name: getattr(value, name) for name in names}


def ago(at: datetime) -> str:
    """Format the time that has passed since `at`."""
    return span((datetime.now(UTC) - at).total_seconds())


class Column(NamedTuple):
    title: str
    cell: Callable[[Any], object]
    keep: int = ALWAYS_SHOWN  # its importance on a narrow terminal, where the less important columns are left out
    is_number: bool = False
    color: Callable[[Any], int | None] = lambda row: None  # returns the colour of a row's cell
    least: int | None = None  # the width to which it's narrowed if the fixed columns don't fit; None if it isn't narrowed
    most: int = MAX_CHARACTERS  # its maximum width on a terminal
    pad: int = 0  # its minimum width


def table(
    columns: Sequence[Column],
    rows: Sequence[Any],
    *,
    detail: Column | None = None,
    below: Callable[[Any], Iterable[str]] = lambda row: (),
    color: int | None = BOLD,
) -> Iterator[str]:
    """Yield a header in `color`, then for each row a line and the lines that `below(row)` returns. A pipe gets all columns. `detail` is the
    last column if it fits; otherwise each row's detail is wrapped onto further lines."""
    is_terminal, most = sys.stdout.isatty(), room()
    all_columns = [*columns, *([] if detail is None else [detail])]
    cells = {column: [one_line(column.cell(row)) for row in rows] for column in all_columns}
    widths = {column: max(column.pad, min(max(map(width, (column.title, *texts))), column.most)) for column, texts in cells.items()}
    is_beside = not is_terminal or _excess(all_columns, widths, "  ", most) <= 0
    shown, gap = _fitting_columns(all_columns if is_beside else columns, widths, most) if is_terminal else (all_columns, "  ")
    yield painted(cut(gap.join(_aligned(column.title, column, widths[column]) for column in shown).rstrip(), most), color)
    for number, row in enumerate(rows):
        texts = [_aligned(cells[column][number], column, widths[column]) for column in shown]
        if not shown[-1].is_number:
            left = most - sum(map(width, texts[:-1])) - len(gap) * (len(shown) - 1)
            texts[-1] = cut(cells[shown[-1]][number], max(len("..."), left))
        yield gap.join(painted(text, column.color(row)) for text, column in zip(texts, shown, strict=True)).rstrip()
        if detail is not None and not is_beside and (text := one_line(detail.cell(row), detail.most)):
            yield from (f"{INDENT}{line}" for line in wrapped(text, most - len(INDENT)))
        yield from below(row)


def _fitting_columns(columns: Sequence[Column], widths: dict[Column, int], most: int) -> tuple[Sequence[Column], str]:
    """Return the columns that fit a terminal, and the gap between them. If these don't fit either, reduce some of the `widths`."""
    is_fixed = all(column.keep == ALWAYS_SHOWN and column.least is None for column in columns)
    if is_fixed or _excess(columns, widths, "  ", most) <= 0:
        return columns, "  "
    shown = [column for column in columns if column.keep == ALWAYS_SHOWN]
    for column in sorted((column for column in columns if column.keep < ALWAYS_SHOWN), key=lambda column: -column.keep):
        more = [each for each in columns if each in (*shown, column)]
        shown = more if _excess(more, widths, " ", most) <= 0 else shown
    excess = _excess(shown, widths, " ", most)
    for column in shown:
        if excess > 0 and column.least is not None:
            widths[column] = min(widths[column], max(column.least, widths[column] - excess))
    return shown, " "


def _excess(columns: Sequence[Column], widths: Mapping[Column, int], gap: str, most: int) -> int:
    return sum(widths[column] for column in columns) + len(gap) * (len(columns) - 1) - most


def _aligned(text: str, column: Column, most: int) -> str:
    return " " * (most - width(text)) + text if column.is_number else padded(text, most)


MAX_BAR: Final = 40  # the width of a bar


class Bar:
    """Shows progress: as a bar on a terminal, otherwise as a line for each tenth."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._shown = -1

    def show(self, done: int) -> None:
        share = done / self.total if self.total else 1.0
        if not self._is_terminal:
            tenth = int(share * 10)
            if tenth != self._shown:
                self._shown = tenth
                print_now(f"{done:,} of {self.total:,} done")
            return
        bar = bar_of(share, max(MIN_BAR, min(MAX_BAR, columns() - BESIDE)))
        rate = done / max(1e-9, time.monotonic() - self._began)
        self._shown = 0
        print(f"\r{bar} {done:,}/{self.total:,}  {rate:,.0f} jobs/s \033[K", end="", flush=True)

    def close(self) -> None:
        """Move the cursor below the bar."""
        if self._is_terminal and self._shown >= 0:
            print()
