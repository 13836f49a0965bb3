"""Shows progress: as a bar on a terminal, otherwise as an occasional line. Asks for confirmation there."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time

from taskflow.cli.base_parser import columns

WIDTH = 40
LEAST_WIDTH = 10
BESIDE = 40
"""Columns for the numbers beside the bar."""


def drawn(share: float, width: int) -> str:
    """Return a bar of `width` characters between brackets, of which this share is filled."""
    filled = int(share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}]"


class Bar:
    def __init__(self, total: int) -> None:
        self.total = total
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._shown = -1
        self._drawn = ""
        self._drawing = threading.Lock()

    def show(self, done: int) -> None:
        share = done / self.total if self.total else 1.0
        if not self._is_terminal:
            tenth = int(share * 10)
            if tenth != self._shown:
                self._shown = tenth
                print_now(f"{done:,} of {self.total:,} done")
            return
        width = max(LEAST_WIDTH, min(WIDTH, columns() - BESIDE))
        rate = done / max(1e-9, time.monotonic() - self._began)
        with self._drawing:
            self._drawn = f"\r{drawn(share, width)} {done:,}/{self.total:,}  {rate:,.0f} jobs/s \033[K"
            print(self._drawn, end="", flush=True)

    def say(self, line: str) -> None:
        """Print a line to stderr, above the bar. May be called from any thread."""
        with self._drawing:
            if self._drawn:
                print("\r\033[K", end="", flush=True)
            print(line, file=sys.stderr, flush=True)
            print(self._drawn, end="", flush=True)

    def close(self) -> None:
        with self._drawing:
            if self._drawn:
                print()
            self._drawn = ""


def print_now(line: str) -> None:
    """Print a line to stdout at once. If its reader is gone, as with `| head`, the command continues."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


def confirmed(question: str, arguments: argparse.Namespace) -> bool:
    """Return True if a person at the terminal confirms, with `--yes`, or if no person is there: a script is not asked."""
    if arguments.yes or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("taskflow: nothing was changed", file=sys.stderr)
    return False
