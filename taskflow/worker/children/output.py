"""Reads the output of a child process in a separate thread, so that a busy event loop does not hold up the child."""

from __future__ import annotations

import codecs
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from taskflow.model.clock import StartThread
from taskflow.model.envelope import Lease
from taskflow.worker.events import ChildPrinted

LONGEST_LINE: Final = 8_192  # the maximum length of a line in characters. Longer lines are reported in pieces.
MOST_OF_A_RUN: Final = 1 << 20  # the maximum number of characters that are reported for one run. The rest is counted and dropped.
LAST_LINES: Final = 40  # the number of lines of stderr that are added to the error of a run whose child died
# The size of a pipe in bytes.
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
                if descriptor in self._open:
                    self._read(descriptor)  # only once: a program that the job started may print for ever
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

    def _read(self, descriptor: int) -> None:
        """Read what is in the pipe. The caller holds the lock."""
        try:
            received = os.read(descriptor, _AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if received:
            self._streams[descriptor].take(received)
        else:
            self._open.discard(descriptor)


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
            self._say(line.removesuffix("\r"))
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
        for start in range(0, max(1, len(line)), LONGEST_LINE):
            piece = line[start : start + LONGEST_LINE]
            if len(piece) >= self._left:
                self._left, self._dropped = 0, self._dropped + len(piece) + 1
            else:
                self._left -= len(piece) + 1
                self.last_lines.append(piece)
                self._emit(ChildPrinted(self._lease, self._pid, self._name, piece))
