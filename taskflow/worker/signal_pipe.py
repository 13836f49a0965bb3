"""Turns signals and file changes into bytes in a pipe, for the supervisor's wait."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

READ_AT_ONCE: Final = 4096

CHANGED: Final = 0
"""Stands for changed files in place of a signal number. No signal has this number."""


class SignalPipe:
    """Turns signals and file changes into bytes in a pipe that the supervisor can wait
    for. The signal handlers themselves do nothing, so they interrupt nothing."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before: dict[int, Any] = {}
        self._had_terminal = _has_terminal()

    def fileno(self) -> int:
        return self._reader

    def take(self) -> bytes:
        """Return the bytes that have arrived since the last call, in order. Each is a signal number or CHANGED."""
        try:
            return os.read(self._reader, READ_AT_ONCE)
        except BlockingIOError:
            return b""

    def note_change(self) -> None:
        """Record that files have changed. May be called from any thread."""
        os.write(self._writer, bytes([CHANGED]))

    def has_lost_terminal(self) -> bool:
        """Return True if the terminal in which this process was started is gone.
        A SIGHUP then only reports that loss, and does not request a restart."""
        return self._had_terminal and not _has_terminal()

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup, SIGHUP stays ignored
                self._before[number] = signal.signal(number, _note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python has already written the number into the pipe."""


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
