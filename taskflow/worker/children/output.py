"""Reads the output of a child process from two pipes, one each for stdout and stderr.
A separate thread does this, so that a busy event loop does not hold up the child."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from taskflow.model.clock import StartThread
from taskflow.model.envelope import Lease
from taskflow.worker.events import ChildPrinted

LONGEST_LINE: Final = 8_192
"""The maximum length of a line in characters. Longer lines are reported in pieces."""

MOST_OF_A_RUN: Final = 1 << 20
"""The maximum number of characters that are reported for one run. The rest is counted and dropped."""

LAST_LINES: Final = 40
"""The number of lines of stderr that are added to the error of a run whose child died."""

# The size of a pipe in bytes: the most that Linux allows without privileges. The default is 64 KiB.
_ROOM: Final = 1 << 20
_AT_ONCE: Final = 1 << 16

Emit = Callable[[ChildPrinted], None]


class Output:
    """Reads the stdout and stderr of one child in a thread, which ends once every process has closed both."""

    def __init__(self, pid: int, stdout: int, stderr: int, emit: Emit, start_thread: StartThread) -> None:
        self._lock = threading.Lock()
        self._streams = {stdout: _Stream("stdout", stdout, pid, emit), stderr: _Stream("stderr", stderr, pid, emit)}
        self._errors = self._streams[stderr]
        self._open = set(self._streams)
        for descriptor in self._streams:
            os.set_blocking(descriptor, False)
            _widen(descriptor)
        start_thread(self._empty, "taskflow-output")

    def begin(self, lease: Lease) -> None:
        """Attribute all output that is read from now on to this run."""
        with self._lock:
            for stream in self._streams.values():
                stream.begin(lease)

    def end(self) -> None:
        """End the run. When this returns, everything that the run printed has been reported."""
        with self._lock:
            for descriptor, stream in self._streams.items():
                # Read at most the size of the pipe, because a program that the job started may print for ever.
                for _ in range(_ROOM // _AT_ONCE):
                    if descriptor not in self._open or not self._read(descriptor):
                        break
                stream.end()

    @property
    def last_lines(self) -> str:
        """The last lines that the run wrote to stderr. They stay available until the next run begins."""
        return "\n".join(self._errors.last_lines)

    def _empty(self) -> None:
        poll = select.poll()
        for descriptor in self._streams:
            poll.register(descriptor, select.POLLIN)
        while self._open:
            for descriptor, _ in poll.poll():
                with self._lock:
                    self._read(descriptor)
                    if descriptor not in self._open:
                        poll.unregister(descriptor)
        with self._lock:
            for descriptor, stream in self._streams.items():
                stream.end()
                os.close(descriptor)

    def _read(self, descriptor: int) -> bool:
        """Read a chunk. Return True if there was output. The caller holds the lock."""
        try:
            received = os.read(descriptor, _AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:
            received = b""
        if not received:
            self._open.discard(descriptor)
            return False
        self._streams[descriptor].take(received)
        return True


class _Stream:
    def __init__(self, name: str, descriptor: int, pid: int, emit: Emit) -> None:
        self.last_lines = deque[str](maxlen=LAST_LINES)
        self._name = name
        self._pid = pid
        self._emit = emit
        self._lease: Lease | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = ""
        self._left = MOST_OF_A_RUN
        self._dropped = 0

    def begin(self, lease: Lease) -> None:
        self.end()
        self.last_lines.clear()
        self._lease = lease

    def take(self, received: bytes) -> None:
        *lines, self._begun = (self._begun + self._decoder.decode(received)).split("\n")
        for line in lines:
            self._say(line)
        while len(self._begun) >= LONGEST_LINE:
            self._say(self._begun[:LONGEST_LINE])
            self._begun = self._begun[LONGEST_LINE:]

    def end(self) -> None:
        if self._begun:
            self._say(self._begun)
            self._begun = ""
        if self._dropped:
            self._emit(ChildPrinted(self._lease, self._pid, self._name, f"... and {self._dropped:,} characters more, which are not shown"))
        self._lease, self._left, self._dropped = None, MOST_OF_A_RUN, 0

    def _say(self, line: str) -> None:
        line = line.removesuffix("\r")
        for start in range(0, max(1, len(line)), LONGEST_LINE):
            self._say_piece(line[start : start + LONGEST_LINE])

    def _say_piece(self, line: str) -> None:
        if len(line) >= self._left:
            self._left, self._dropped = 0, self._dropped + len(line) + 1
            return
        self._left -= len(line) + 1
        self.last_lines.append(line)
        self._emit(ChildPrinted(self._lease, self._pid, self._name, line))


def _widen(descriptor: int) -> None:
    """Enlarge the pipe. While a job in the worker holds the interpreter lock,
    the reading thread cannot run, but the child should not have to wait."""
    with contextlib.suppress(OSError, AttributeError):  # not allowed, or not Linux
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _ROOM)
