"""`taskflow status --watch`: shows the status again and again, in place on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from taskflow.cli.interrupts import raising
from taskflow.cli.json_text import json_text
from taskflow.cli.summary import Rates, Summary
from taskflow.cli.terminal import RED, painted, room, wrapped
from taskflow.model.errors import BrokerError
from taskflow.model.printable import one_line

_OPEN: Final = "\033[?1049h\033[?25l\033[?7l"
"""Opens the terminal's second screen, hides the cursor, and has the ends of long lines cut off."""

_CLOSE: Final = "\033[?7h\033[?25h\033[?1049l"
_TOP: Final = "\033[H"
_END_OF_LINE: Final = "\033[K"
_REST: Final = "\033[J"


async def watch(read: Callable[[], Awaitable[Summary]], interval: float, *, is_json: bool) -> int:
    """Show what `read` returns every `interval` seconds, until a signal stops it. An outage of the store is shown, and waited out."""
    before = await read()
    rates: Rates = {}
    trouble: str | None = None
    is_terminal = sys.stdout.isatty() and not is_json
    with Screen() if is_terminal else contextlib.nullcontext(Blocks(is_json=is_json)) as output:
        while True:
            output.show(before, rates, trouble)
            await output.wait(interval)
            try:
                latest = await read()
                before, rates, trouble = latest, latest.rates_since(before), None
            except BrokerError as error:
                trouble = trouble or f"since {datetime.now():%H:%M:%S} the store does not answer: {one_line(error)}"


class Blocks:
    """Prints a block of lines each time, or a line of JSON."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json

    def show(self, summary: Summary, rates: Rates, trouble: str | None) -> None:
        now = datetime.now().astimezone()
        if self._is_json:
            print(json_text({"time": now.isoformat(), "trouble": trouble, **summary.to_json(), "rates": rates}), flush=True)
            return
        lines = [trouble] if trouble else summary.lines(rates)
        print(f"{now:%Y-%m-%d %H:%M:%S}", *lines, "", sep="\n", flush=True)

    async def wait(self, interval: float) -> None:
        await asyncio.sleep(interval)


class Screen:
    """The terminal's second screen, on which each picture replaces the one before. When the block ends, also by a signal, the terminal is
    as before, and the last picture stays on it."""

    def __init__(self) -> None:
        self._draw: Callable[[], Iterator[str]] = lambda: iter(())
        self._lines: Sequence[str] = ()
        self._resized = asyncio.Event()
        self._leaving = contextlib.ExitStack()

    def __enter__(self) -> Screen:
        loop = asyncio.get_running_loop()
        self._leaving.enter_context(raising(signal.SIGTERM, signal.SIGHUP))
        for number, handle in ((signal.SIGWINCH, self._resized.set), (signal.SIGTSTP, self._suspend)):
            loop.add_signal_handler(number, handle)
            self._leaving.callback(loop.remove_signal_handler, number)
        self._leaving.callback(self._close)
        _write(_OPEN)
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def show(self, summary: Summary, rates: Rates, trouble: str | None) -> None:
        self._draw = lambda: self._picture(summary, rates, trouble)
        self._refresh()

    async def wait(self, interval: float) -> None:
        """Wait for the next picture. If the terminal is resized, draw this one again at once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + interval
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while True:
                    await self._resized.wait()
                    self._resized.clear()
                    self._refresh()

    def _refresh(self) -> None:
        self._lines = list(self._draw())
        rows = _rows()
        shown = self._lines if len(self._lines) <= rows else [*self._lines[: rows - 1], f"... {len(self._lines) - rows + 1} more lines"]
        _write(_TOP + "\n".join(f"{line}{_END_OF_LINE}" for line in shown) + _REST)

    def _picture(self, summary: Summary, rates: Rates, trouble: str | None) -> Iterator[str]:
        yield f"{datetime.now():%Y-%m-%d %H:%M:%S}   Ctrl-C ends"
        if trouble:
            yield from (painted(line, RED) for line in wrapped(trouble, room()))
        yield from summary.lines(rates)

    def _suspend(self) -> None:
        """Give the terminal back while the process is suspended by Ctrl-Z."""
        _write(_CLOSE)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGTSTP)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, self._suspend)
        _write(_OPEN)
        self._resized.set()

    def _close(self) -> None:
        _write(_CLOSE + "".join(f"{line}\n" for line in self._lines))


def _rows() -> int:
    with contextlib.suppress(OSError):
        return max(2, os.get_terminal_size(sys.stdout.fileno()).lines)
    return 24


def _write(text: str) -> None:
    """Write a whole picture at once, so that no part of it is seen alone."""
    with contextlib.suppress(BlockingIOError):
        sys.stdout.write(text)
        sys.stdout.flush()
